"""On a mesh with explicit axes, the default of ``jax.make_mesh``: the same numbers, split as the inputs are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import mgu_jax as mgu
from mgu_jax.layer.mesh import merged
from mgu_jax.training.devices import on_own_devices
from tests import laws

T, B, D, H, K = 6, 4, 3, 5, 2
RNG = np.random.default_rng(0)
LENGTHS, RESETS, ELSEWHERE = np.array([6, 0, 3, 5]), RNG.random((T, B)) < 0.3, RNG.standard_normal((B, H))
NOISE = {"recurrent_dropout": 0.3, "zoneout": 0.2, "dropconnect": 0.3, "key": jax.random.key(3)}
TWICE = np.zeros((2, 2))
NORM = mgu.Cell(layer_norm=True)

# Arrays among the options of scan, and how they are split.
SPLIT = {"lengths": P("b"), "resets": P(None, "b"), "reset_to": P("b")}
ALL = {"lengths": LENGTHS, "resets": RESETS, "reset_to": ELSEWHERE, **NOISE}
CASES = {
    "manual": (mgu.MGU, False, {"lengths": LENGTHS, "resets": RESETS}),
    "autodiff": (mgu.MGU, False, {"lengths": LENGTHS, "resets": RESETS, "implementation": "autodiff"}),
}
EACH = {"nothing": {}, "segments": {"save": "segments"}, "reverse": {"reverse": True}}
EACH |= {name: {name: ALL[name]} for name in ("lengths", "resets")} | {"reset_to": {"resets": RESETS, **ALL}}
EACH |= {name: {name: NOISE[name], "key": NOISE["key"]} for name in ("recurrent_dropout", "zoneout", "dropconnect")}
MORE = {
    f"{how or 'manual'}, {of}, {option}": (cell, with_h0, options | {"implementation": how})
    for how in (None, "autodiff")
    for of, cell in (("paper's", mgu.MGU), ("norm", NORM))
    for with_h0 in (False, True)
    for option, options in EACH.items()
    if how is None or "save" not in options
} | {
    "parallel": (mgu.MIN_GRU, True, {"resets": RESETS, "zoneout": 0.2, "implementation": "parallel"}),
    "parallel, diagonal": (
        mgu.DIAGONAL_MGU,
        True,
        {"lengths": LENGTHS, "resets": RESETS, "implementation": "parallel"},
    ),
    "everything": (NORM, True, {**ALL, "save": "states", "segment": 4}),
}


@pytest.fixture(autouse=True)
def mesh():
    made = jax.make_mesh((2,), ("b",))
    with jax.set_mesh(made):
        yield made


def splits(*arrays):
    return [jax.typeof(a).sharding.spec for a in arrays]


def check_scan(cell, with_h0, options):
    """Values and gradients equal the oracle's, and are split as the inputs are."""
    case = laws.case(cell, T, (B,), D, H)
    arrays = {name: options[name] for name in SPLIT if name in options}
    static = {name: value for name, value in options.items() if name not in SPLIT}

    @jax.jit
    def run(params, xs, h0, arrays, cotangents):
        def outputs(params, xs, h0, reset_to):
            given = arrays if reset_to is None else arrays | {"reset_to": reset_to}
            return mgu.scan(params, xs, h0, cell=cell, **given, **static)

        found, pullback = jax.vjp(outputs, params, xs, h0, arrays.get("reset_to"))
        return found, pullback(cotangents)

    params, xs, h0, dhs, dh_last = case
    steps, rows = P(None, "b"), P("b")
    split = jax.device_put((xs, h0, dhs, dh_last, arrays), (steps, rows, steps, rows, {n: SPLIT[n] for n in arrays}))
    xs, h0, dhs, dh_last, arrays = split
    (hs, h_last), found = run(laws.cast(params, "float64"), xs, h0 if with_h0 else None, arrays, (dhs, dh_last))
    assert splits(hs, h_last, found[1]) == [P(None, "b", None), P("b", None), P(None, "b", None)]
    assert all(a.sharding.is_fully_replicated for a in jax.tree.leaves(found[0]))

    options = {name: value for name, value in options.items() if name != "implementation"}
    with jax.set_mesh(None):
        wanted, gradients = laws.expected(case if with_h0 else case._replace(h0=np.zeros((B, H))), cell, **options)
    if not with_h0:
        del gradients["h0"]
    laws.assert_close({"hs": hs, "h_last": h_last}, wanted, 1e-12)
    laws.assert_close(laws.named(*found), gradients, 1e-11 if cell.layer_norm else 1e-12)


@pytest.mark.parametrize("name", CASES)
def test_scan(name, x64):
    check_scan(*CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_scan_with_each_option(name, x64):
    check_scan(*MORE[name])


@pytest.mark.slow
def test_under_vmap_and_with_other_splits(quick_compiler):
    """The mapped axis is split; or the features are, or time."""
    params, xs = mgu.init(jax.random.key(0), D, 6), RNG.standard_normal((T, B, D)).astype(np.float32)
    with jax.set_mesh(None):
        wanted = np.asarray(mgu.scan(jax.device_get(params), xs)[0])
    split = jax.device_put(xs, P(None, "b"))
    mapped = jax.jit(jax.vmap(lambda x: mgu.scan(params, x)[0], 1, 1))(split)
    wide = jax.device_put(
        params, params._replace(**{n: P(None, "b") for n in ("W_f", "U_f", "W_h", "U_h")}, b_f=P(), b_h=P())
    )
    features = mgu.scan(wide, xs)[0]
    time = mgu.scan(params, jax.device_put(xs, P("b")))[0]
    assert splits(mapped, features, time) == [P(None, "b", None), P(None, None, "b"), P("b", None, None)]
    for got in (mapped, features, time):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)


def test_without_a_mesh_in_the_context(quick_compiler):
    """The arrays alone say that the axes are explicit."""
    params, mesh = mgu.init(jax.random.key(0), D, H), jax.sharding.get_mesh()
    with jax.set_mesh(None):
        params = jax.device_get(params)
        xs = jax.device_put(np.ones((T, B, D), np.float32), NamedSharding(mesh, P(None, "b")))
        hs = mgu.scan(params, xs)[0]
        np.testing.assert_allclose(hs, mgu.scan(params, np.asarray(xs))[0], rtol=0, atol=2e-6)
    assert splits(hs) == [P(None, "b", None)]


MODELS = {
    "tokens": mgu.Model(9, (H, H), K, embedding_size=D, learned_h0=True, residual=True, readout="last"),
    "tied": mgu.Model(9, (H,), 9, embedding_size=H, tie=True, readout="last"),
    "both directions": mgu.Model(D, (H, H), K, bidirectional="concatenate", readout="mean", dropout=0.3, zoneout=0.2),
}


@pytest.mark.parametrize(
    "name", ["tokens", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tied", "both directions"))]
)
def test_a_model(name, x64):
    model = MODELS[name]
    with jax.set_mesh(None):
        shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda a: RNG.normal(0, 0.5, a.shape).astype(a.dtype), shapes)
    xs = RNG.integers(0, 9, (T, B)) if model.embedding_size else RNG.standard_normal((T, B, D)).astype(np.float32)
    noise = {} if model.embedding_size else {"key": jax.random.key_data(jax.random.key(1))}

    @jax.jit
    def run(params, xs, lengths, resets, noise):
        key = jax.random.wrap_key_data(noise["key"]) if noise else None

        def loss(params):
            ys, state = model.apply(params, xs, lengths=lengths, resets=resets, key=key, return_state=True)
            return jnp.sum(ys**2), (ys, state)

        return jax.value_and_grad(loss, has_aux=True)(params)

    arguments = (params, xs, LENGTHS, RESETS, jax.device_get(noise))
    with jax.set_mesh(None):
        wanted = jax.device_get(run(*arguments))
    got = run(params, *jax.device_put(arguments[1:4], (P(None, "b"), P("b"), P(None, "b"))), arguments[4])
    (_, (ys, state)), _ = got
    assert set(splits(ys, *jax.tree.leaves(state))) == {P("b", None)}
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert laws.relative_error(one, other) <= 2e-5


@pytest.mark.slow
def test_single_steps(quick_compiler):
    model, x = mgu.Model(D, (H,), K), RNG.standard_normal((B, D)).astype(np.float32)
    params, reset = model.init(jax.random.key(0)), np.array([True, False, False, True])
    y, state = model.step(params, jax.device_put(x, P("b")), reset=jax.device_put(reset, P("b")))
    layer, h = params.layers[0], jax.device_put(np.ones((B, H), np.float32), P("b"))
    h_next, kept = mgu.step_forward(layer, h, jax.device_put(x, P("b")))
    dparams, dh, dx = mgu.step_backward(layer, kept, h_next)
    assert splits(y, *state.layers, h_next, dh, dx) == [P("b", None)] * 5
    assert all(a.sharding.is_fully_replicated for a in jax.tree.leaves(dparams))


def test_training_leaves_the_mesh_of_the_caller():
    @on_own_devices
    def explicit_axes(keys, batch):
        assert batch.xs is TWICE
        return [jax.sharding.get_abstract_mesh(), *(jax.typeof(key).sharding.mesh for key in keys)]

    keys = [jax.random.key(0), jax.random.PRNGKey(0)]
    assert all(mesh.empty for mesh in explicit_axes(keys, batch=mgu.Data(TWICE, TWICE)))
    assert not jax.sharding.get_abstract_mesh().empty
    for function in (mgu.start, mgu.fit, mgu.sweep, mgu.halving, mgu.evaluate, mgu.predict):
        assert function.__wrapped__


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_training_makes_its_own_mesh(devices, quick_compiler, optax_promotes):
    model = mgu.Model(D, (H,), K, readout="last")
    data = mgu.Data(RNG.standard_normal((8, T, D)).astype(np.float32), np.arange(8) % K)
    recipe = mgu.Recipe(model, batch_size=4)
    key = jax.random.key(0)  # whose type names the mesh
    state, losses = mgu.fit(recipe, data, steps=2, key=key, devices=devices)
    ys = mgu.predict(model, state.params, data)
    with jax.set_mesh(None):
        _, wanted = mgu.fit(recipe, data, steps=2, key=jax.random.key(0), devices=devices)
    np.testing.assert_array_equal(losses, wanted)
    assert ys.shape == (8, K)


def test_merged():
    """The first that is split decides, and an axis of the mesh is used once."""
    assert merged((None, "b"), ("b", "c", None)) == ("b", "c", None)
    assert merged(("a", None), (None, "a"), (None, ("b", "c"))) == ("a", ("b", "c"))
    assert merged() == ()
