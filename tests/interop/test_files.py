"""A model or a layer in a file: exact round trips, and one sentence for a file that is not what was saved."""

import dataclasses
import random
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import archive
from mgu_jax.interop import files
from tests import laws
from tests.rejects import rejects

D, H, K = 4, 5, 3


def identical(one, other):
    a, b = jax.tree.flatten(one), jax.tree.flatten(other)
    assert a[1] == b[1]
    for mine, right in zip(a[0], b[0], strict=True):
        assert mine.dtype == right.dtype
        assert mine.tobytes() == np.asarray(right).tobytes()


def numbers(cell, dtype="float64"):
    return jax.tree.map(lambda a: np.asarray(a, dtype), laws.case(cell, D=D, H=H).params)


MODELS = {
    "plain": mgu.Model(D, (H,), K),
    "much": mgu.Model(9, (H, H), K, mgu.MGU1, embedding_size=D, bidirectional="sum", learned_h0=True, residual=True,
                      readout="last", dropout=0.25, zoneout=0.1, save="states", segment=3, compute_dtype=jnp.bfloat16,
                      precision=jax.lax.Precision.HIGHEST),
    "tied": mgu.Model(9, (H,), 9, embedding_size=H, tie=True),
    "half": mgu.Model(D, (H,), K, mgu.Cell(layer_norm=True), dtype=jnp.bfloat16, precision="high"),
}  # fmt: skip


def drawn(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)


@pytest.fixture(params=[".npz", ".safetensors"])
def path(request, tmp_path):
    """A file to write to, of each kind."""
    if request.param == ".safetensors":
        pytest.importorskip("safetensors")
    return tmp_path / f"model{request.param}"


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_a_file(path, name):
    model = MODELS[name]
    params = drawn(model)
    files.save(path, model, params)
    loaded, again = files.load(path)
    identical(again, params)
    assert dataclasses.replace(loaded, precision=model.precision) == model
    assert str(loaded.precision).lower() in str(model.precision).lower()
    assert [*path.parent.iterdir()] == [path]


def test_a_layer_in_a_file(tmp_path):
    params = jax.tree.map(jnp.asarray, numbers(mgu.MIN_GRU, "float16"))
    files.save(tmp_path / "layer.npz", mgu.MIN_GRU, params)
    cell, again = files.load(tmp_path / "layer.npz")
    assert cell == mgu.MIN_GRU
    identical(again, params)


def test_a_file_in_a_fresh_process(tmp_path):
    model, path = MODELS["plain"], str(tmp_path / "model.npz")
    params = drawn(model)
    files.save(path, model, params)
    code = f"from mgu_jax.interop import files; m, p = files.load({path!r}); print(float(p.W_y[0, 0]), m.output_size)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{float(params.W_y[0, 0])} {K}\n"


def test_numpy_alone_reads_the_arrays(tmp_path):
    params = drawn(MODELS["plain"])
    files.save(tmp_path / "model.npz", MODELS["plain"], params)
    with np.load(tmp_path / "model.npz") as held:
        assert np.array_equal(held["layers.0.W_f"], params.layers[0].W_f)


def test_a_file_that_was_cut_off_or_changed(path):
    """Cut at 20 places, and with one bit flipped at 100."""
    model, rng = MODELS["plain"], random.Random(0)
    params = drawn(model)
    files.save(path, model, params)
    content = path.read_bytes()
    for size in sorted(rng.sample(range(len(content)), 20)):
        path.write_bytes(content[:size])
        rejects(lambda: files.load(path), "path", "a file that mgu_jax.interop.files.save wrote", path)
    for _ in range(100):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            identical(files.load(path)[1], params)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("change", "rule", "got"),
    [
        (lambda arrays, header: arrays.update(W_y=arrays["W_y"][:2]), "must hold W_y [5, 3]", "[2, 3]"),
        (lambda arrays, header: arrays.update(W_z=arrays["W_y"]), "must hold no W_z", "[5, 3]"),
        (lambda arrays, header: arrays.update(W_y=arrays["W_y"].astype("float64")), "one dtype", "float32, float64"),
        (lambda arrays, header: header["model"].update(depth=3), "a model that this version of mgu_jax knows", "depth"),
        (lambda arrays, header: header.clear(), "a model that this version of mgu_jax knows", "KeyError: 'cell'"),
    ],
)
def test_a_specification_that_does_not_fit_the_arrays(tmp_path, change, rule, got):
    """As another version of mgu_jax might have written it."""
    path = tmp_path / "model.npz"
    files.save(path, MODELS["plain"], drawn(MODELS["plain"]))
    arrays, header = archive.read(path, "model")
    change(arrays, header)
    archive.write(path, "model", arrays, header)
    rejects(lambda: files.load(path), path, rule, got)


def test_files_that_save_did_not_write(tmp_path):
    np.savez(tmp_path / "model.npz", a=np.zeros(3))
    archive.write(tmp_path / "other.npz", "checkpoint", {}, {})
    for name in ("model.npz", "other.npz"):
        rejects(lambda name=name: files.load(tmp_path / name), "path must be", "not a model that mgu_jax wrote", name)
    with pytest.raises(FileNotFoundError):
        files.load(tmp_path / "none.npz")
    rejects(lambda: files.load("model.pt"), "the ending of path", "'.safetensors', '.npz'", "'.pt'")


def test_safetensors_that_save_did_not_write(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "model.safetensors"
    safetensors.save_file({"a": np.zeros(3, np.float32)}, path)
    rejects(lambda: files.load(path), "path must be", "not a model that mgu_jax wrote", path)
    files.save(path, MODELS["plain"], drawn(MODELS["plain"]))
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    rejects(lambda: files.load(path), "path must be", "differs from its checksum", path)
    with pytest.raises(FileNotFoundError):
        files.load(tmp_path / "none.safetensors")


def test_what_cannot_be_saved(tmp_path):
    model = MODELS["plain"]
    rejects(lambda: files.save(tmp_path / "x.npz", {}, drawn(model)), "model", "mgu_jax.Model or a Cell", "a dict")
    rejects(lambda: files.save(tmp_path / "x.npz", model, drawn(model).layers), "params", "no 0.U_f", "[5, 5]")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_file_that_was_there(path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    model = MODELS["plain"]
    files.save(path, model, drawn(model))
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.save(path, model, jax.tree.map(jnp.zeros_like, drawn(model)))
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


def test_double_precision_needs_x64(path):
    with jax.enable_x64(True):
        files.save(path, mgu.MGU, numbers(mgu.MGU))
    rejects(lambda: files.load(path), path, "jax_enable_x64", "float64", TypeError)


def test_a_path_that_is_no_path():
    calls = (lambda: files.save(None, mgu.MGU, numbers(mgu.MGU, "float32")), lambda: files.load(None))
    for call in calls:
        rejects(call, "path", "a path", "None", TypeError)
