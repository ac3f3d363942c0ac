"""One file of arrays and a header: exact, readable by NumPy alone, whole or not at all, and verified."""

import json
import os
import random
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from mgu_jax import archive

DTYPES = ("float32", "float64", "float16", "bool", "int8", "uint32", "int64", "complex64", "bfloat16", "int4")
DTYPES += ("float8_e4m3fn", "float8_e5m2")
ARRAYS = {name: np.asarray(np.arange(6).reshape(2, 3) % 2).astype(jnp.dtype(name)) for name in DTYPES}
ARRAYS |= {
    "number": np.array(3.5),
    "bfloat16 number": np.array(3.5, jnp.bfloat16),
    "empty": np.zeros((0, 3)),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">f4"),
    "nan": np.array([np.nan, -0.0, np.inf]),
    "file": np.array(["the name", "of an argument"]),
    ".layers[0]['a/b']": np.ones(2),
}
HEADER = {"text": "é", "numbers": [1, 0.1, None], "nested": {"1": float("inf")}}


def identical(one, other):
    return one.keys() == other.keys() and all(
        (a.dtype, a.shape, a.tobytes()) == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name, a in one.items()
    )


@pytest.fixture
def path(tmp_path):
    """A file with two arrays."""
    path = tmp_path / "a.npz"
    archive.write(path, "model", {"a": np.arange(5.0), "b": np.ones((2, 2), jnp.bfloat16)}, HEADER)
    return path


def test_arrays_and_header_come_back_to_the_last_bit(tmp_path):
    archive.write(tmp_path / "a.npz", "model", ARRAYS, HEADER)
    arrays, header = archive.read(tmp_path / "a.npz", "model")
    assert identical(arrays, ARRAYS)
    assert header == archive.read_header(tmp_path / "a.npz", "model") == HEADER


def test_numpy_alone_reads_the_file(path):
    with np.load(path) as held:
        assert held.files == ["mgu_jax_model", "a", "b"]
        assert np.array_equal(held["a"], np.arange(5.0))
        assert np.array_equal(held["b"], np.full((2, 2), 0x3F80, np.uint16))
        assert json.loads(bytes(held["mgu_jax_model"]))["header"] == HEADER


def test_the_same_content_gives_the_same_bytes(path, tmp_path):
    archive.write(tmp_path / "again.npz", "model", *archive.read(path, "model"))
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_objects_are_refused_and_nothing_is_unpickled(path, tmp_path):
    with pytest.raises((TypeError, ValueError)):
        archive.write(tmp_path / "b.npz", "model", {"a": np.array([{}])}, {})
    assert [*tmp_path.iterdir()] == [path]
    content = dict(np.load(path)) | {"a": np.array([{}])}
    np.savez(path, **content)
    with pytest.raises(archive.Unreadable, match="allow_pickle=False"):
        archive.read(path, "model")


def test_of_300_flipped_bits_not_one_changes_what_is_read(path):
    """A flip in a field that says nothing of the content, such as the date of an entry, may pass."""
    content, (arrays, header), rng = path.read_bytes(), archive.read(path, "model"), random.Random(0)
    refused = 0
    for _ in range(300):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            got = archive.read(path, "model")
        except archive.Unreadable:
            refused += 1
        else:
            assert identical(got[0], arrays)
            assert got[1] == header
    assert refused > 200


def test_a_file_cut_at_any_byte_is_refused(path):
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert archive.is_marked(path, "model") == (size >= 47)
        for read in (archive.read, archive.read_header):
            with pytest.raises(archive.Unreadable, match=r"^is damaged"):
                read(path, "model")


def rewritten(path, change):
    """The file with other entries; ``change`` gets and returns a dict of arrays."""
    with np.load(path) as held:
        content = dict(held)
    np.savez(path, **change(content))


def resealed(entries, seal=True, **changes):
    body = json.loads(bytes(entries["mgu_jax_model"])) | changes
    if seal:
        body.pop("sha256")
        body["sha256"] = archive._digest(body)
    return entries | {"mgu_jax_model": np.frombuffer(json.dumps(body).encode(), np.uint8)}


CHANGES = {  # by someone who writes zip files with correct checksums
    "a number": (lambda e: e | {"a": e["a"] + 1}, "a differs from its checksum"),
    "a dtype": (lambda e: e | {"a": e["a"].view("int64")}, None),  # the header says what the bits are
    "a shape": (lambda e: e | {"a": e["a"][None]}, "a differs from its checksum"),
    "a name": (lambda e: {"c" if k == "a" else k: v for k, v in e.items()}, "a is missing"),
    "one more": (lambda e: e | {"c": e["a"]}, "c was added"),
    "the header": (lambda e: resealed(e, False, header={}), "its header differs from its checksum"),
    "another format": (
        lambda e: resealed(e, format=2),
        r"another format \(2; .* reads 1",
    ),
    "no JSON": (lambda e: e | {"mgu_jax_model": np.zeros(3, np.uint8)}, "its header cannot be read"),
    "no header": (lambda e: {"a": e["a"]}, "not a model that mgu_jax wrote"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_named(path, name):
    change, text = CHANGES[name]
    before = archive.read(path, "model")[0]
    rewritten(path, change)
    if text is None:
        assert identical(archive.read(path, "model")[0], before)
        return
    with pytest.raises(archive.Unreadable, match=text):
        archive.read(path, "model")


@pytest.mark.parametrize("content", [b"", b"PK", b"a text", b"\x93NUMPY"], ids=["empty", "short", "text", "npy"])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    assert not archive.is_marked(path, "model")
    with pytest.raises(archive.Unreadable, match="not a model that mgu_jax wrote"):
        archive.read(path, "model")


def test_a_file_of_another_kind_is_refused(path):
    assert not archive.is_marked(path, "checkpoint")
    with pytest.raises(archive.Unreadable, match="not a checkpoint"):
        archive.read_header(path, "checkpoint")


def test_a_file_that_is_not_there(tmp_path):
    for read in (archive.read, archive.read_header, archive.is_marked):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "a.npz", "model")


def fails(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace", "numpy.lib.format.write_array"])
def test_a_full_disk_leaves_what_was_there(path, monkeypatch, where):
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(where, fails)
        with pytest.raises(OSError, match="No space left"):
            archive.write(path, "model", {"a": np.ones(9)}, {})
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("missing", [1, 100, 1000, 3_000_000])
def test_a_limit_on_the_size_of_files_leaves_what_was_there(path, tmp_path, missing):
    """The system itself stops the writing: in the middle of an array, or in the list of entries behind the last."""
    resource = pytest.importorskip("resource")
    large = {"a": np.ones(10), "b": np.ones(1_000_000)}
    archive.write(tmp_path / "large.npz", "model", large, {})
    size = (tmp_path / "large.npz").stat().st_size
    (tmp_path / "large.npz").unlink()
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            archive.write(path, "model", large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


def test_the_file_has_its_name_only_when_it_is_whole(path, monkeypatch):
    """The order that makes a loss of power harmless: the content is on the disk, then the name, then the folder."""
    events = []
    sync, replace = os.fsync, type(path).replace

    def synced(descriptor):
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        sync(descriptor)

    def replaced(draft, target):
        assert zipfile.ZipFile(draft).testzip() is None
        events.append("name")
        return replace(draft, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(type(path), "replace", replaced)
    archive.write(path, "model", {"a": np.ones(3)}, {})
    assert events == ["file", "name", "folder"]


def test_an_unfinished_file_of_a_killed_process_is_replaced(path):
    path.with_name(path.name + archive.UNFINISHED).write_bytes(b"half")
    archive.write(path, "model", {"a": np.ones(3)}, {})
    assert [*path.parent.iterdir()] == [path]


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(IsADirectoryError):
        archive.write(tmp_path / "a.npz", "model", {}, {})
    assert [*tmp_path.iterdir()] == [tmp_path / "a.npz"]
