"""A trained model without the code that trained it: ``jax.export`` and ONNX."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.interop import export
from mgu_jax.interop.convert import from_dict, to_dict
from tests import laws

D, H, K = 4, 5, 3
T, B = jax.export.symbolic_shape("T, B")


@pytest.fixture(scope="module", autouse=True)
def nothing_of_a_hasty_compiler_is_left():
    """A model's compiled steps outlive a test, and those of ``quick_compiler`` are rounded otherwise."""
    jax.clear_caches()


def drawn(model, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, size=s.shape), s.dtype), shapes)


def inputs(model, steps, batch):
    rng = np.random.default_rng(steps)
    if model.embedding_size:
        return rng.integers(0, model.input_size, (steps, batch), np.int32)
    return np.asarray(rng.normal(size=(steps, batch, model.input_size)), model.dtype)


MODELS = {
    "plain": mgu.Model(D, (H,), K),
    "stack": mgu.Model(D, (H, H), K, mgu.FLAX_MGU, bidirectional="sum", residual=True, readout="mean"),
    "tokens": mgu.Model(9, (H, 6), K, mgu.MGU3, embedding_size=D, learned_h0=True, readout="last", dtype=jnp.bfloat16),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_program_of_sequences_is_apply_to_the_last_bit(name):
    """Of sizes that were not known when it was exported."""
    model = MODELS[name]
    params = drawn(model)
    exported = export.sequence(model, params, lengths=name != "plain")
    assert exported.platforms == ("cpu", "cuda")
    for steps, batch in ((1, 2), (7, 3)) if name == "plain" else ((7, 3),):
        xs = inputs(model, steps, batch)
        lengths = () if name == "plain" else (np.arange(batch, dtype=np.int32),)
        got = exported.call(export.weights(params), xs, *lengths)
        wanted = model.apply(params, xs, lengths=lengths[0] if lengths else None)
        assert np.asarray(got).tobytes() == np.asarray(wanted).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("cell", [mgu.MGU, mgu.RESET_AFTER_MGU, mgu.UGRNN, mgu.FLAX_MGU, mgu.MIN_GRU])
def test_a_program_of_long_sequences_is_apply_to_the_last_bit(cell):
    """Of sizes that ``scan`` cuts into segments where it knows them."""
    model = mgu.Model(64, (128,), K, cell)
    params = model.init(jax.random.key(0))
    program = jax.jit(export.sequence(model, params).call)
    for steps, batch in ((200, 64), (1009, 16)):
        xs = inputs(model, steps, batch)
        assert np.array_equal(program(export.weights(params), xs), model.apply(params, xs))


WHOLE = """
import sys
import jax, numpy
weights = dict(numpy.load(sys.argv[1]))
program = jax.jit(jax.export.deserialize(bytearray(weights.pop("program"))).call)
numpy.save(sys.argv[3], program(weights, numpy.load(sys.argv[2])))
assert "mgu_jax" not in sys.modules
"""


def test_a_sequence_in_a_fresh_process(tmp_path):
    model = MODELS["plain"]
    params, xs = drawn(model), inputs(model, 6, 3)
    paths = [str(tmp_path / name) for name in ("sequence.npz", "xs.npy", "ys.npy")]
    export.save(paths[0], export.sequence(model, params), params)
    np.save(paths[1], xs)
    subprocess.run([sys.executable, "-I", "-c", WHOLE, *paths], check=True)
    assert np.load(paths[2]).tobytes() == np.asarray(model.apply(params, xs)).tobytes()


FRESH = """
import sys
import jax, numpy
weights = dict(numpy.load(sys.argv[1]))
program = jax.jit(jax.export.deserialize(bytearray(weights.pop("program"))).call)
given = numpy.load(sys.argv[2])
state, fresh = (numpy.full((3, 5), numpy.nan, "float32"),), numpy.array([True, True, True])
ys = []
for t, x in enumerate(given["xs"]):
    y, state = program(weights, x, state, fresh)
    ys.append(y)
    fresh = numpy.array([False, False, t == 2])
numpy.save(sys.argv[3], numpy.stack(ys))
assert "mgu_jax" not in sys.modules
"""


def test_a_stream_in_a_fresh_process(tmp_path):
    """A program of steps, saved and loaded where there is nothing but JAX; one of three streams begins anew."""
    model = mgu.Model(D, (H,), K, learned_h0=True)
    params, xs = drawn(model), inputs(MODELS["plain"], 6, 3)
    export.save(tmp_path / "stream.npz", export.stream(model, params), params)
    np.savez(tmp_path / "inputs.npz", xs=xs)
    paths = [str(tmp_path / name) for name in ("stream.npz", "inputs.npz", "ys.npy")]
    subprocess.run([sys.executable, "-I", "-c", FRESH, *paths], check=True)
    got, state, wanted = np.load(paths[2]), None, []
    for t, x in enumerate(xs):
        y, state = model.step(params, x, state)
        wanted.append(y)
        if t == 2:
            (h,), (first,) = state.layers, model.start(params, (3,)).layers
            state = mgu.State((h.at[2].set(first[2]),))
    assert np.array_equal(got, np.stack(wanted))


@pytest.mark.parametrize("implementation", ["manual", "autodiff"])
def test_scan_is_exported_with_every_option(implementation, quick_compiler):
    """With both sizes open, and with its gradient."""
    params = to_dict(laws.cast(laws.case(mgu.MGU, D=D, H=H).params, "float32"))  # files know no Params
    save = {"save": "segments", "segment": 2} if implementation == "manual" else {}

    def run(params, xs, lengths, resets):
        options = {"lengths": lengths, "resets": resets, "reverse": True, "implementation": implementation} | save
        return mgu.scan(from_dict(params), xs, **options)

    shapes = [((T, B, D), jnp.float32), ((B,), jnp.int32), ((T, B), bool)]
    exported = jax.export.export(jax.jit(run))(params, *(jax.ShapeDtypeStruct(*s) for s in shapes))
    rng = np.random.default_rng(0)
    arguments = rng.normal(size=(5, 2, D)).astype("float32"), np.array([3, 5], np.int32), rng.random((5, 2)) < 0.3

    def loss(function):
        return lambda params: sum(map(jnp.sum, function(params, *arguments)))

    copy = jax.export.deserialize(exported.serialize(vjp_order=1))
    got, wanted = (jax.value_and_grad(loss(f))(params) for f in (copy.call, run))
    for mine, right in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, right, rtol=2e-5)


def exported(**arguments):
    shapes = {"xs": ((T, B, D), jnp.float32)} | arguments
    implementation = "parallel" if not arguments else None
    cell = mgu.MIN_GRU if not arguments else mgu.MGU
    params = laws.cast(laws.case(cell, D=D, H=H).params, "float32")

    def run(given):
        return mgu.scan(params, **given, cell=cell, implementation=implementation)

    jax.export.export(jax.jit(run))({name: jax.ShapeDtypeStruct(*s) for name, s in shapes.items()})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"xs": ((T, B, 9), jnp.float32)}, "xs must have shape [T, ..., 4] (params.W_h is [4, 5]); got [T, B, 9]."),
        ({"lengths": ((T,), jnp.int32)}, "lengths must have shape [B] (the batch of xs); got [T]."),
        ({"h0": ((8, H), jnp.float32)}, "h0 must have shape [B, 5] (the batch of xs and the width of params)"),
        ({}, "implementation 'parallel' needs a number of steps that is known; got T."),
    ],
)  # fmt: skip
def test_open_sizes_are_checked_like_others(arguments, text):
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        exported(**arguments)


def test_what_cannot_be_exported(tmp_path):
    model, other = MODELS["plain"], MODELS["stack"]
    with pytest.raises(TypeError, match=r"^model must be what mgu_jax\.model makes; got a dict\.$"):
        export.sequence({}, drawn(model))
    with pytest.raises(TypeError, match=r"^params must be a ModelParams, as model\.init makes it; got a Params\.$"):
        export.sequence(model, drawn(model).layers[0])
    with pytest.raises(ValueError, match=r"^a bidirectional model cannot be stepped"):
        export.stream(other, drawn(other))
    with pytest.raises(ValueError, match=r"^the ending of path must be one of '\.npz'; got '\.jax'\.$"):
        export.save(tmp_path / "x.jax", None, None)
    params = drawn(model)
    with pytest.raises(TypeError, match=r"^exported must be what sequence or stream made; got a ModelParams\.$"):
        export.save(tmp_path / "x.npz", params, None)
    with pytest.raises(TypeError, match=r"^platforms must be a tuple of names, such as \('cpu',\); got 'cpu'\.$"):
        export.sequence(model, params, platforms="cpu")
    with pytest.raises(ValueError, match=r"^an entry of platforms must be one of 'cpu', .*; got 'gpu'\.$"):
        export.stream(model, params, platforms=("gpu",))
