"""``time_axis`` is the same run with the axes moved; arrays that look as if they needed it are refused with a hint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests import laws
from tests.rejects import rejects

T, BATCH, D, H, K = 6, (3, 2), 4, 5, 2
RNG = np.random.default_rng(0)
LENGTHS, RESETS, MASK = np.array([[6, 0], [3, 5], [1, 2]]), RNG.random((T, *BATCH)) < 0.3, RNG.random((T, *BATCH)) < 0.8


@pytest.mark.parametrize("axis", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_scan(axis, x64):
    params, xs, h0, dhs, dh_last = laws.cast(laws.case(mgu.MGU, T, BATCH, D, H), "float64")

    def pull(time_axis, xs, dhs, resets, mask):
        def run(params, xs, h0):
            marks = {"lengths": LENGTHS, "resets": resets, "mask": mask}
            return mgu.scan(params, xs, h0, reverse=True, time_axis=time_axis, **marks)

        outputs, pullback = jax.vjp(run, params, xs, h0)
        return outputs, pullback((dhs, dh_last))

    def moved(a):
        return jnp.moveaxis(a, 0, axis)

    (hs, h_last), (dparams, dxs, dh0) = jax.jit(pull, static_argnums=0)(0, xs, dhs, RESETS, MASK)
    wanted = (moved(hs), h_last), (dparams, moved(dxs), dh0)
    got = jax.jit(pull, static_argnums=0)(axis, *map(moved, (xs, dhs, RESETS, MASK)))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert laws.relative_error(one, other) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"embedding_size": 3}, {"readout": "last"}], ids=str)
def test_a_model(options, quick_compiler):
    model = mgu.Model(D, (H, H), K, **options)
    params = model.init(jax.random.key(0))
    tokens = "embedding_size" in options
    xs = RNG.integers(0, D, (T, 3)) if tokens else RNG.normal(size=(T, 3, D)).astype(np.float32)
    marks, lengths = {"mask": MASK[..., 0], "resets": RESETS[..., 0]}, LENGTHS[:, 0]
    options = {"lengths": lengths, "return_state": True, "return_hidden": True}
    ys, state, hs = model.apply(params, xs, **marks, **options)
    marks = {name: value.swapaxes(0, 1) for name, value in marks.items()}
    got = model.apply(params, xs.swapaxes(0, 1), time_axis=1, **marks, **options)
    ys = ys.swapaxes(0, 1) if model.readout == "all" else ys
    wanted = ys, state, tuple(h.swapaxes(0, 1) for h in hs)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


PARAMS = jax.tree.map(lambda a: a.astype(np.float32), laws.case(mgu.MGU, 1, (), D, H).params)
ONE = jax.tree.map(lambda a: a.astype(np.float32), laws.case(mgu.MGU, 1, (), 1, H).params)
XS = np.zeros((3, T, D), np.float32)  # batch first


@pytest.mark.parametrize(
    ("call", "name", "rule", "got"),
    [
        (lambda: mgu.scan(PARAMS, XS, lengths=LENGTHS[:, 0]), "xs", "time_axis=1, and lengths of shape [3]", "[3, 6]"),
        (
            lambda: mgu.scan(PARAMS, XS, XS[:, 0, :1].repeat(H, 1)),
            "xs",
            "time_axis=1, and h0 of shape [3, 5]",
            "[3, 6]",
        ),
        (lambda: mgu.scan(PARAMS, XS, time_axis=2), "time_axis", "in [0, 2)", "2"),
        (lambda: mgu.scan(PARAMS, XS, time_axis=True), "time_axis", "in [0, 2)", "True"),
        (lambda: mgu.scan(PARAMS, XS, time_axis=1, resets=RESETS[..., 0]), "resets", "[3, 6]", "[6, 3]"),
        (lambda: mgu.scan(PARAMS, XS.swapaxes(1, 2)), "xs", "[T, ..., 4]", "[3, 4, 6]: features come last, and axis 1"),
        (lambda: mgu.scan(PARAMS, XS[..., :2]), "xs", "[T, ..., 4]", "[3, 6, 2]: either xs lacks features"),
        (lambda: mgu.scan(ONE, XS[..., 0]), "xs", "[T, ..., 1]", "[3, 6]: xs[..., None] has one feature"),
    ],
)
def test_hints_of_scan(call, name, rule, got):
    rejects(call, name, rule, f"got {got}" if name != "xs" or "[T" in rule else got, ValueError)


def test_hints_of_a_model(quick_compiler):
    model, reader = mgu.Model(D, (H,), K), mgu.Model(256, (H,), K, embedding_size=3)
    params, tables = model.init(jax.random.key(0)), reader.init(jax.random.key(0))
    hint = "tokens need Model(embedding_size=...), and images"
    for xs, got in ((XS.astype(np.uint8), "uint8 [3, 6, 4]"), (np.zeros((6, 3), int), "int64 [6, 3]")):
        rejects(lambda xs=xs: model.apply(params, xs), "xs", hint, f"got {got}", TypeError)
    images, bytes_ = XS.astype(np.uint8), np.zeros((3, T), np.uint8)
    rejects(lambda: reader.apply(tables, images), "xs", "looks like images", "got uint8 [3, 6, 4]", TypeError)
    first = "time_axis=1, and lengths of shape [3]"
    rejects(lambda: reader.apply(tables, bytes_, lengths=LENGTHS[:, 0]), "xs", first, "[3, 6]", ValueError)
    state = model.start(params, (3,))
    rejects(lambda: model.apply(params, XS, state=state), "xs", "time_axis=1, and state", "[3, 6]", ValueError)
    assert reader.apply(tables, bytes_, lengths=LENGTHS[:, 0], time_axis=1).shape == (3, T, K)
