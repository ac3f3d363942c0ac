"""A model computes what its layers and its readout compute; each option equals the same computation written out."""

import dataclasses
import json
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests import laws
from tests.rejects import rejects

XS = jax.random.normal(jax.random.key(1), (7, 3, 4))
LENGTHS = np.array([7, 0, 4])
KEY = jax.random.key(5)
pytestmark = pytest.mark.usefixtures("quick_compiler")


def close(a, b, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


def made(*sizes, **options):
    """A model and parameters for it, with biases that are not zero."""
    model = mgu.Model(*sizes, **options)
    params = model.init(jax.random.key(0))
    return model, jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape, a.dtype), params)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("readout", ["all", "last", "mean"])
def test_apply_equals_scans_and_a_product(readout, batch):
    model, params = made(4, (5, 6), 2, readout=readout)
    xs = jax.random.normal(jax.random.key(1), (7, *batch, 4))
    hs, _ = mgu.scan(params.layers[0], xs)
    hs, h_last = mgu.scan(params.layers[1], hs)
    rows = {"all": hs, "last": h_last, "mean": hs.mean(0)}[readout]
    close(model.apply(params, xs), rows @ params.W_y + jnp.broadcast_to(params.b_y, (*rows.shape[:-1], 2)))


def test_the_shapes_scale_and_bias_of_init():
    model = mgu.Model(4, (5, 6), 2)
    params = model.init(jax.random.key(0))
    assert [layer.W_f.shape for layer in params.layers] == [(4, 5), (5, 6)]
    assert params.W_y.shape == (6, 2)
    assert params.backward is params.h0 is params.embedding is None
    np.testing.assert_array_equal(params.b_y, np.zeros(2))
    other = model.init(jax.random.key(0), forget_bias=0.5, initial_scale=0.1)
    np.testing.assert_allclose(other.layers[1].U_h, 0.1 * params.layers[1].U_h, rtol=1e-6)
    np.testing.assert_allclose(other.W_y, 0.1 * params.W_y, rtol=1e-6)
    np.testing.assert_array_equal(other.layers[0].b_f, 0.5 * np.ones(5))
    assert not np.array_equal(params.layers[0].W_f[:, :1], params.layers[1].W_f[:4, :1])


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("RESET_AFTER_MGU", "MIN_GRU")]


@pytest.mark.parametrize("name", ["MGU", *OTHERS])
def test_implementations_agree_in_both_dtypes(dtype, name):
    xs, gradients = XS.astype(dtype), []
    for implementation in ("manual", "autodiff"):
        options = {"implementation": implementation, "bidirectional": "sum", "learned_h0": True, "dtype": dtype}
        model, params = made(4, (5, 5), 2, laws.NAMED[name], residual=True, dropout=0.2, **options)

        def loss(params, model=model):
            return jnp.sum(model.apply(params, xs, lengths=LENGTHS, key=KEY, zoneout=0.1) ** 2)

        gradients.append(jax.grad(loss)(params))
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        assert a.dtype == dtype
        assert laws.relative_error(a, b) <= laws.TOLERANCE[dtype]


def test_initial_scale_of_a_diagonal_recurrence():
    one, two = (mgu.Model(3, (4,), 2, mgu.DIAGONAL_MGU).init(KEY, initial_scale=scale) for scale in (1.0, 2.0))
    np.testing.assert_array_equal(two.layers[0].U_h, 2 * one.layers[0].U_h)


NUMPY = {
    "input_size": np.int64(3),
    "hidden_sizes": [np.int32(4), np.int64(5)],
    "output_size": np.int64(2),
    "embedding_size": np.int64(6),
    "segment": np.int64(2),
    "residual": np.bool_(True),
    "learned_h0": np.bool_(False),
    "dropout": np.float32(0.25),
    "zoneout": np.float64(0.5),
}


def test_options_of_numpy_become_plain():
    """A model with them equals one with Python's numbers, and JSON can hold its options."""
    model = mgu.Model(**NUMPY)
    plain = mgu.Model(3, (4, 5), 2, embedding_size=6, segment=2, residual=True, dropout=0.25, zoneout=0.5)
    assert model == plain
    assert hash(model) == hash(plain)
    values = [getattr(model, name) for name in NUMPY] + list(model.hidden_sizes)
    assert {type(value) for value in values} == {int, float, bool, tuple}
    json.dumps([getattr(model, name) for name in NUMPY])


EQUAL = {
    "the same arguments": lambda: mgu.Model(4, (5,), 2, zoneout=0.1, compute_dtype="bfloat16"),
    "other types": lambda: mgu.Model(np.int64(4), [5], 2, zoneout=0.1, dtype="float32", compute_dtype=jnp.bfloat16),
    "replace": lambda: dataclasses.replace(
        mgu.Model(4, (6,), 2, zoneout=0.1, compute_dtype="bfloat16"), hidden_sizes=(5,)
    ),
    "pickle": lambda: pickle.loads(pickle.dumps(mgu.Model(4, (5,), 2, zoneout=0.1, compute_dtype="bfloat16"))),
}


@pytest.mark.parametrize("name", EQUAL)
def test_an_equal_copy_compiles_nothing(name):
    """Models with equal attributes are equal, have equal hashes and share what ``jit`` has compiled."""
    model, copy = EQUAL["the same arguments"](), EQUAL[name]()
    assert copy is not model
    assert copy == model
    assert hash(copy) == hash(model)
    traces = []

    @partial(jax.jit, static_argnums=0)
    def apply(model, params, xs):
        traces.append(model)
        return model.apply(params, xs)

    params = model.init(KEY)
    ys = apply(model, params, XS)
    np.testing.assert_array_equal(apply(copy, params, XS), ys)
    assert len(traces) == apply._cache_size() == 1


def test_a_model_with_another_option_is_not_equal():
    model = mgu.Model(4, (5,), 2)
    for options in ({"hidden_sizes": (6,)}, {"zoneout": 0.1}, {"dtype": jnp.bfloat16}, {"cell": mgu.MGU1}):
        assert dataclasses.replace(model, **options) != model


def test_replace_checks_its_options():
    rejects(lambda: dataclasses.replace(mgu.Model(4, (5,), 2), readout="first"), "readout", "'all'", "'first'")


def test_a_model_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        mgu.Model(4, (5,), 2).readout = "last"


def test_init_under_vmap_draws_many_models():
    model = mgu.Model(4, (5,), 2)
    many = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 3))
    assert many.layers[0].U_f.shape == (3, 5, 5)
    assert jax.vmap(model.apply, (0, None))(many, jnp.ones((7, 2, 4))).shape == (3, 7, 2, 2)


@pytest.mark.parametrize("how", ["concatenate", "sum"])
@pytest.mark.parametrize("readout", ["all", "last", "mean"])
def test_bidirectional_equals_two_runs(how, readout):
    model, params = made(4, (5,), 2, readout=readout, bidirectional=how)
    there, end = mgu.scan(params.layers[0], XS, lengths=LENGTHS)
    back, back_end = mgu.scan(params.backward[0], XS, lengths=LENGTHS, reverse=True)

    def merge(a, b):
        return a + b if how == "sum" else jnp.concatenate([a, b], -1)

    hs = merge(there, back)
    mean = hs.sum(0) / np.maximum(LENGTHS, 1)[:, None].astype(np.float32)
    rows = {"all": hs, "last": merge(end, back_end), "mean": mean}[readout]
    wanted = rows @ params.W_y + jnp.broadcast_to(params.b_y, (*rows.shape[:-1], 2))
    ys, state = model.apply(params, XS, lengths=LENGTHS, return_state=True)
    close(ys, wanted)
    close((state.layers[0], state.backward[0]), (end, back_end))


def test_the_widths_of_two_bidirectional_layers():
    _, params = made(4, (5, 6), 2, bidirectional="concatenate")
    assert [layer.W_h.shape for layer in params.layers] == [(4, 5), (10, 6)]
    assert params.W_y.shape == (12, 2)
    _, params = made(4, (5, 6), 2, bidirectional="sum")
    assert [layer.W_h.shape for layer in params.backward] == [(4, 5), (5, 6)]


@pytest.mark.parametrize("readout", ["all", "last"])
def test_residual_connections(readout):
    """They connect layers of equal width, and never skip the first."""
    model, params = made(5, (5, 5, 6, 6), 2, residual=True, readout=readout)
    xs = jax.random.normal(KEY, (7, 3, 5))
    first, _ = mgu.scan(params.layers[0], xs, lengths=LENGTHS)
    second = first + mgu.scan(params.layers[1], first, lengths=LENGTHS)[0]
    third, _ = mgu.scan(params.layers[2], second, lengths=LENGTHS)
    fourth = third + mgu.scan(params.layers[3], third, lengths=LENGTHS)[0]
    rows = fourth if readout == "all" else jnp.stack([fourth[6, 0], jnp.zeros(6), fourth[3, 2]])
    wanted = rows @ params.W_y + jnp.broadcast_to(params.b_y, (*rows.shape[:-1], 2))
    close(model.apply(params, xs, lengths=LENGTHS), wanted)


def test_readout_last_uses_the_last_valid_step():
    model, params = made(4, (5,), 2, readout="last")
    every = mgu.Model(4, (5,), 2).apply(params, XS)
    ys = model.apply(params, XS, lengths=LENGTHS)
    close((ys[0], ys[2]), (every[6, 0], every[3, 2]))
    close(ys[1], params.b_y)  # length 0: the initial state, which is zero


@pytest.mark.parametrize("readout", ["all", "last", "mean"])
def test_a_mask_leaves_steps_out_of_all_layers_and_of_the_readout(readout):
    """A sequence with holes gives what the sequence without these steps gives."""
    model = mgu.Model(3, (4, 4), 2, readout=readout, bidirectional="sum", residual=True)
    params, there = model.init(KEY), np.array([True, False, True, True, False, False, True])
    xs = jax.random.normal(KEY, (7, 1, 3))
    spoilt = jnp.where(there[:, None, None], xs, jnp.nan)
    ys, state, hs = model.apply(
        params, spoilt, mask=there[:, None], lengths=jnp.array([6]), return_state=True, return_hidden=True
    )
    right, right_state, right_hs = model.apply(params, xs[jnp.array([0, 2, 3])], return_state=True, return_hidden=True)
    np.testing.assert_allclose(ys[jnp.array([0, 2, 3])] if readout == "all" else ys, right, rtol=0, atol=1e-6)
    for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(right_state), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    for got, wanted in zip(hs, right_hs, strict=True):
        np.testing.assert_allclose(got[jnp.array([0, 2, 3])], wanted, rtol=0, atol=1e-6)
        assert not np.any(got[jnp.array([1, 4, 5, 6])])
    rejects(lambda: model.apply(params, xs, mask=there), "mask", "[7, 1]", "[7]")


def test_embedding():
    model, params = made(11, (5,), 2, embedding_size=4)
    tokens = jax.random.randint(KEY, (7, 3), 0, 11)
    assert params.embedding.shape == (11, 4)
    dense = mgu.Model(4, (5,), 2)
    close(model.apply(params, tokens), dense.apply(params, params.embedding[tokens]))
    gradient = jax.grad(lambda p: jnp.sum(model.apply(p, tokens[:, :1] * 0 + 3) ** 2))(params).embedding
    assert np.flatnonzero(np.abs(gradient).max(1)).tolist() == [3]


@pytest.mark.parametrize("readout", ["all", "last"])
def test_a_tied_model_reads_out_with_its_embedding(readout):
    """Values and gradients are those of a model with a W_y that is the embedding transposed; the gradients add up."""
    options = {"embedding_size": 5, "readout": readout}
    model, params = made(11, (6, 5), 11, tie=True, **options)
    apart = mgu.Model(11, (6, 5), 11, **options)
    tokens = jax.random.randint(KEY, (7, 3), 0, 11)
    assert params.W_y is None
    assert mgu.count(params) == mgu.count(apart.init(KEY)) - 55
    np.testing.assert_array_equal(params.readout, params.embedding.T)
    np.testing.assert_array_equal(model.init(KEY).embedding, apart.init(KEY).embedding)

    def loss(model, params):
        return jnp.sum(jnp.sin(model.apply(params, tokens)))

    whole = params._replace(W_y=params.embedding.T)
    close(model.apply(params, tokens), apart.apply(whole, tokens))
    got, wanted = jax.grad(partial(loss, model))(params), jax.grad(partial(loss, apart))(whole)
    close(got.embedding, wanted.embedding + wanted.W_y.T)
    close(got.layers[0].U_f, wanted.layers[0].U_f)
    close(model.step(params, tokens[0])[0], apart.step(whole, tokens[0])[0])


def test_learned_h0_is_the_state_before_the_first_step():
    model, params = made(4, (5, 6), 2, learned_h0=True)
    np.testing.assert_array_equal(model.init(KEY).h0.layers[1], np.zeros(6))
    state = mgu.State(tuple(jnp.broadcast_to(h, (3, h.size)) for h in params.h0.layers))
    close(model.apply(params, XS), model.apply(params, XS, state=state))
    gradient = jax.grad(lambda p: jnp.sum(model.apply(p, XS) ** 2))(params).h0
    assert all(np.abs(g).max() > 1e-4 for g in gradient.layers)


@pytest.mark.parametrize("learned_h0", [False, True])
def test_a_returned_state_continues_the_sequence(learned_h0):
    model, params = made(4, (5, 6), 2, learned_h0=learned_h0)
    whole, end = model.apply(params, XS, return_state=True)
    first, state = model.apply(params, XS[:3], return_state=True)
    second, last = model.apply(params, XS[3:], state=state, return_state=True)
    close((jnp.concatenate([first, second]), last), (whole, end))


@pytest.mark.parametrize("name", laws.NAMED)
def test_step_equals_apply(name):
    """One input at a time, starting without a state, and with the expected value of zoneout."""
    model, params = made(4, (5, 5), 2, laws.NAMED[name], residual=True, learned_h0=True, zoneout=0.3)
    step, state, ys = jax.jit(model.step), None, []
    for x in XS:
        y, state = step(params, x, state)
        ys.append(y)
    whole, end = model.apply(params, XS, return_state=True)
    close((jnp.stack(ys), state), (whole, end))


@pytest.mark.parametrize("learned_h0", [False, True])
def test_step_with_resets_equals_apply(learned_h0):
    """A reset goes back to the model's own first state, whatever the state holds."""
    model, params = made(4, (5, 6), 2, learned_h0=learned_h0)
    resets = jnp.zeros((7, 3), bool).at[4, 1].set(True).at[0, 2].set(True)
    step, ys = jax.jit(model.step), []
    state = jax.tree.map(lambda h: h.at[2].set(np.nan), model.start(params, (3,)))
    for x, reset in zip(XS, resets, strict=True):
        y, state = step(params, x, state, reset=reset)
        ys.append(y)
    close(jnp.stack(ys), model.apply(params, XS, resets=resets))


def test_step_with_readout_last():
    model, params = made(4, (5,), 2, readout="last")
    y, state = model.step(params, XS[0])
    y, _ = model.step(params, XS[1], state)
    close(y, model.apply(params, XS[:2]))


@pytest.mark.parametrize("options", [{}, {"learned_h0": True}], ids=str)
def test_resets_go_back_to_the_initial_state_of_the_model(options):
    """In one call, and in two calls that pass the state on."""
    model, params = made(4, (5, 6), 2, **options)
    resets = jnp.zeros((7, 3), bool).at[4, 1].set(True)
    whole = model.apply(params, XS, resets=resets)
    first, state = model.apply(params, XS[:3], return_state=True, resets=resets[:3])
    second = model.apply(params, XS[3:], state=state, resets=resets[3:])
    close(jnp.concatenate([first, second]), whole)
    assert np.abs(model.apply(params, XS)[4:, 1] - whole[4:, 1]).max() > 1e-3


def test_truncated_bptt():
    """A detached state passes its value on to the next window, and no gradient."""
    model, params = made(4, (5,), 2)

    def second_half(params, cut):
        _, state = model.apply(params, XS[:3], return_state=True)
        return jnp.sum(model.apply(params, XS[3:], state=mgu.detach(state) if cut else state) ** 2)

    assert second_half(params, True) == second_half(params, False)
    cut, through = (jax.grad(second_half)(params, cut) for cut in (True, False))
    _, state = model.apply(params, XS[:3], return_state=True)
    close(cut, jax.grad(lambda p: jnp.sum(model.apply(p, XS[3:], state=state) ** 2))(params))
    assert np.abs(cut.layers[0].U_h - through.layers[0].U_h).max() > 1e-3


NOISE = ["dropout", "recurrent_dropout", "zoneout", "dropconnect"]


@pytest.mark.parametrize("name", NOISE)
def test_noise_needs_a_key(name):
    model, params = made(4, (5, 5), 2, **{name: 0.5})
    quiet = model.apply(params, XS)
    np.testing.assert_array_equal(quiet, model.apply(params, XS))
    np.testing.assert_array_equal(quiet, model.apply(params, XS, key=KEY, training=False))
    noisy, again, other = (model.apply(params, XS, key=k, training=True) for k in (KEY, KEY, jax.random.key(6)))
    np.testing.assert_array_equal(noisy, again)
    assert np.abs(noisy - quiet).max() > 1e-3
    assert np.abs(noisy - other).max() > 1e-3
    plain = mgu.Model(4, (5, 5), 2)
    np.testing.assert_array_equal(plain.apply(params, XS, key=KEY, **{name: 0.5}), noisy)
    if name != "zoneout":  # without a key, zoneout applies its expected value
        close(plain.apply(params, XS), quiet)


@pytest.mark.parametrize("name", NOISE)
def test_rates_may_be_traced(name):
    model, params = made(4, (5, 5), 2)
    rates = jnp.array([0.0, 0.3])
    together = jax.vmap(lambda rate: model.apply(params, XS, key=KEY, **{name: rate}))(rates)
    close(together[0], model.apply(params, XS))
    close(together[1], model.apply(params, XS, key=KEY, **{name: 0.3}))


@pytest.mark.parametrize("implementation", ["manual", "autodiff"])
@pytest.mark.parametrize(("name", "key"), [*((name, KEY) for name in NOISE), ("zoneout", None)])
def test_rates_have_no_gradient(name, key, implementation):
    """The gradient through the random draws is not defined, so no implementation gives a part of one."""
    model, params = made(4, (5, 5), 2, implementation=implementation)

    def loss(rate):
        return jnp.sum(model.apply(params, XS, key=key, **{name: rate}) ** 2)

    assert jax.grad(loss)(0.3) == 0
    assert jax.jvp(loss, (0.3,), (1.0,))[1] == 0


@pytest.mark.parametrize("name", NOISE)
def test_noise_has_the_right_mean(name):
    """Over many keys, the mean of one linear step with noise equals the step without noise."""
    cell = mgu.Cell(gate="b", reset="none", activation="identity")
    model, params = made(4, (5,), 2, cell)
    state = mgu.State((jax.random.normal(KEY, (3, 5)),))
    keys = jax.random.split(KEY, 4000)
    ys = jax.vmap(lambda key: model.apply(params, XS[:1], state=state, key=key, **{name: 0.4}))(keys)
    wanted = model.apply(params, XS[:1], state=state, **({"zoneout": 0.4} if name == "zoneout" else {}))
    np.testing.assert_allclose(ys.mean(0), wanted, rtol=0, atol=6 * float(ys.std(0).max()) / 4000**0.5)


@pytest.mark.parametrize(
    ("dtype", "rate"), [("float32", 1 - 1e-8), ("bfloat16", 0.999), ("float16", 0.9999), ("float16", 0.99999)]
)
def test_a_rate_close_to_one_gives_finite_outputs(dtype, rate):
    model = mgu.Model(2, (64,), 4, dtype=dtype)
    params, xs = model.init(KEY), jnp.ones((5, 3, 2), dtype)
    for name in ("dropout", "recurrent_dropout", "zoneout", "dropconnect"):
        assert jnp.isfinite(model.apply(params, xs, key=KEY, **{name: rate})).all(), name


def test_one_mask_per_sequence_or_per_step():
    """Recurrent dropout drops the same units at every step; zoneout draws new ones at each step."""
    cell = mgu.Cell(gate="b", reset="none", activation="identity")
    params = mgu.init(KEY, 4, 50, cell)
    zero = jax.tree.map(jnp.zeros_like, params)
    identity = zero._replace(U_h=jnp.eye(50), b_f=jnp.full(50, 20.0))  # h' = masked h
    hs, _ = mgu.scan(identity, jnp.zeros((3, 2, 4)), jnp.ones((2, 50)), cell=cell, key=KEY, recurrent_dropout=0.5)
    np.testing.assert_allclose(hs, jnp.stack([hs[0], hs[0] ** 2, hs[0] ** 3]), rtol=1e-5)
    assert np.any(hs[0, 0] != hs[0, 1])
    forget = zero._replace(b_f=jnp.full(50, 20.0))  # h' = 0, unless zoned out
    hs, _ = mgu.scan(forget, jnp.zeros((1, 2, 4)), jnp.ones((2, 50)), cell=cell, key=KEY, zoneout=0.5)
    assert 0.3 < float(jnp.mean(hs > 0.5)) < 0.7


def test_compute_dtype_and_precision_reach_the_readout():
    model = mgu.Model(4, (5,), 2, compute_dtype=jnp.bfloat16, precision="highest")
    params = model.init(KEY)
    program = str(jax.make_jaxpr(model.apply)(params, XS))
    assert program.count("preferred_element_type=float32") == program.count("dot_general[") == 5
    exact = mgu.Model(4, (5,), 2).apply(params, XS)
    rounded = model.apply(params, XS)
    assert rounded.dtype == jnp.float32
    assert 1e-5 < np.abs(rounded - exact).max() < 0.05


@pytest.mark.parametrize("readout", ["mean", pytest.param("all", marks=pytest.mark.slow)])
def test_sums_over_many_steps_of_half_precision(readout, quick_compiler):
    """The embedding of a token that occurs 1,000 times, b_y and the mean are sums in float32."""
    model = mgu.Model(1, (5,), 2, embedding_size=3, readout=readout, dtype=jnp.bfloat16)
    wide = dataclasses.replace(model, dtype="float32")
    rng, xs = np.random.default_rng(0), jnp.zeros((257, 4), jnp.int32)  # 257 is 256 in bfloat16
    params = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape), jax.eval_shape(model.init, jax.random.key(0)))
    params = laws.cast(params, jnp.bfloat16)

    gradient = jax.jit(lambda p, m: jax.grad(lambda p: m.apply(p, xs).astype(jnp.float32).mean())(p), static_argnums=1)
    got, wanted = gradient(params, model), gradient(laws.cast(params, jnp.float32), wide)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        assert laws.relative_error(a.astype(jnp.float32), b) < 0.02, jax.tree_util.keystr(path)
