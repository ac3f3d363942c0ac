"""A trained model as a program of ``jax.export``, which runs without this library."""

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
from tests.interop.common import drawn, inputs
from tests.rejects import rejects

D, H, K = 4, 5, 3
T, B = jax.export.symbolic_shape("T, B")


@pytest.fixture(scope="module", autouse=True)
def no_hasty_programs():
    """A model's compiled steps outlive a test, and those of ``quick_compiler`` round differently."""
    jax.clear_caches()


MODELS = {
    "plain": mgu.Model(D, (H,), K),
    "stack": mgu.Model(D, (H, H), K, mgu.FLAX_MGU, bidirectional="sum", residual=True, readout="mean"),
    "tokens": mgu.Model(9, (H, 6), K, mgu.MGU3, embedding_size=D, learned_h0=True, readout="last", dtype=jnp.bfloat16),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_program_of_sequences_equals_apply_to_the_last_bit(name):
    """At sizes that were unknown when it was exported."""
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
    for steps, batch in ((0, 2), (2, 0)) if name == "plain" else ():
        with pytest.raises(ValueError, match="Expected value >= 1"):  # JAX's own sentence
            exported.call(export.weights(params), inputs(model, steps, batch))


@pytest.mark.slow
@pytest.mark.parametrize("cell", [mgu.MGU, mgu.RESET_AFTER_MGU, mgu.UGRNN, mgu.FLAX_MGU, mgu.MIN_GRU])
def test_the_program_of_long_sequences_equals_apply_to_the_last_bit(cell):
    """At sizes that ``scan`` would cut into segments if it knew them."""
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


def test_without_flatbuffers_the_extra_is_named(tmp_path, monkeypatch):
    """And an older file stays as it is."""
    model, path = MODELS["plain"], tmp_path / "program.npz"
    params = drawn(model)
    exported = export.stream(model, params)
    path.write_bytes(b"older")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    install = "in a clone of mgu_jax, pip install -e '.[export]'"
    rejects(lambda: export.save(path, exported, params), "flatbuffers", install, kind=ImportError)
    assert path.read_bytes() == b"older"


def test_a_stream_in_a_fresh_process(tmp_path):
    """A program of steps runs with JAX alone; one of three streams begins again."""
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
def test_scan_can_be_exported_with_every_option(implementation, quick_compiler):
    """With both sizes unknown, and with its gradient."""
    # A serialised program cannot hold Params.
    params = to_dict(laws.cast(laws.case(mgu.MGU, D=D, H=H).params, "float32"))
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


UNKNOWN = [
    ({"xs": ((T, B, 9), jnp.float32)}, "xs", "[T, ..., 4]", "[T, B, 9]"),
    ({"lengths": ((T,), jnp.int32)}, "lengths", "[B]", "[T]"),
    ({"h0": ((8, H), jnp.float32)}, "h0", "[B, 5]", "[8, 5]"),
    ({}, "implementation 'parallel'", "number of steps", "T"),
]


@pytest.mark.parametrize(("arguments", "name", "rule", "got"), UNKNOWN, ids=[name for _, name, *_ in UNKNOWN])
def test_unknown_sizes_are_checked_like_known_ones(arguments, name, rule, got):
    rejects(lambda: exported(**arguments), name, rule, f"got {got}", ValueError)


def test_errors():
    model, other = MODELS["plain"], MODELS["stack"]
    params = drawn(model)
    rejects(lambda: export.sequence({}, params), "model", "an mgu_jax.Model", "a dict", TypeError)
    rejects(lambda: export.sequence(model, params.layers[0]), "params", "a ModelParams", "a Params", TypeError)
    rejects(
        lambda: export.stream(other, drawn(other)),
        "bidirectional",
        "cannot be stepped: its reverse layers",
        kind=ValueError,
    )
    rejects(lambda: export.sequence(model, params, platforms="cpu"), "platforms", "a tuple", "'cpu'", TypeError)
    rejects(lambda: export.stream(model, params, platforms=("gpu",)), "platforms", "'cpu'", "'gpu'", ValueError)


def test_errors_of_save(tmp_path):
    params = drawn(MODELS["plain"])
    rejects(lambda: export.save(None, None, None), "path", "a path", "None", TypeError)
    rejects(lambda: export.save(tmp_path / "x.jax", None, None), "path", "'.npz'", "'.jax'", ValueError)
    rejects(lambda: export.save(tmp_path / "x.npz", params, None), "exported", "stream", "a ModelParams", TypeError)


def test_a_full_disk_leaves_the_program_that_was_there(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    model, path = MODELS["plain"], tmp_path / "model.npz"
    params = drawn(model)
    exported = export.sequence(model, params, platforms=("cpu",))
    export.save(path, exported, params)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export.save(path, exported, jax.tree.map(jnp.zeros_like, params))
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]
