"""Arrays and a JSON header in one .npz file, which is written whole or not at all and verified when it is read.

    write(path, "model", {"W": W}, {"units": 64})
    arrays, header = read(path, "model")

``numpy.load`` reads the file too: every array is an entry of its name, and "mgu_jax_model" is the header as JSON. The
header is sealed: it includes the version of this format, the dtype, shape and sha256 of every array, and a sha256 of
all that. An array whose dtype NumPy does not know, such as bfloat16, is stored as unsigned integers of the same bits.
Nothing in a file is run as code.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

FORMAT = 1
UNFINISHED = ".mgu_jax-unfinished"  # added to the name of a file while it is being written

Arrays = dict[str, np.ndarray]


class Unreadable(ValueError):
    """The file is not what was written. The message continues a sentence about the file: "is damaged (...)"."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to. It takes the place of ``path`` when the block ends, and is removed if the block fails."""
    draft = path.with_name(path.name + UNFINISHED)
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    with suppress(OSError):  # not every system can open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the new name survives a loss of power
        finally:
            os.close(folder)


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write what ``numpy.savez`` writes, whole or not at all. Raises OSError."""
    with replacing(path) as file, zipfile.ZipFile(file, "w") as held:
        for name, array in arrays.items():
            with held.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _stored(array: np.ndarray) -> np.ndarray:
    known = array.dtype.isbuiltin != 2  # 2: another package has registered it with NumPy
    return array if known else np.array(array, order="C").view(f"u{array.itemsize}")


def _facts(array: np.ndarray) -> dict[str, Any]:
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return {"dtype": str(array.dtype), "shape": [*array.shape], "sha256": hashlib.sha256(content.data).hexdigest()}


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def seal(arrays: Arrays, header: Any) -> str:
    """The header as JSON, with all that ``unseal`` and ``verify`` need to notice a change."""
    body = {"format": FORMAT, "header": header, "arrays": {name: _facts(array) for name, array in arrays.items()}}
    return json.dumps(body | {"sha256": _digest(body)})


def unseal(text: str | bytes) -> dict[str, Any]:
    """What was sealed: "header", and "arrays" for ``verify``. Raises Unreadable."""
    try:
        body = json.loads(text)
        version, digest = body["format"], body.pop("sha256")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Unreadable("is damaged (its header cannot be read)") from None
    if version != FORMAT:  # first, since another format may have another checksum
        raise Unreadable(f"is of another format ({version!r}; this version of mgu_jax reads {FORMAT})")
    if digest != _digest(body):
        raise Unreadable("is damaged (its header differs from its checksum)")
    return body


def verify(body: dict[str, Any], arrays: Arrays) -> None:
    """Raise Unreadable unless the arrays are those of the sealed header."""
    sealed = body["arrays"]
    for name in sorted(sealed.keys() | arrays.keys()):
        if name not in arrays or name not in sealed:
            raise Unreadable(f"is damaged ({name} {'is missing' if name in sealed else 'was added'})")
        if _facts(arrays[name]) != sealed[name]:
            raise Unreadable(f"is damaged ({name} differs from its checksum)")


def entry_of(kind: str) -> str:
    """The name of the header in a file of this kind."""
    return f"mgu_jax_{kind}"


def write(path: Path, kind: str, arrays: Arrays, header: Any) -> None:
    """Write arrays and a header to a file.

    Args:
        path: where the file will be. A file that is there now is replaced when the new one is complete.
        kind: one word for what the file holds. ``read`` must ask for the same.
        arrays: arrays of NumPy, without objects.
        header: whatever JSON can hold.

    Raises:
        OSError: the disk is full or cannot be written. What was at ``path`` has not changed.
    """
    text = np.frombuffer(seal(arrays, header).encode(), np.uint8)
    write_npz(path, {entry_of(kind): text} | {name: _stored(array) for name, array in arrays.items()})


def is_marked(path: Path, kind: str) -> bool:
    """Whether the file begins as ``write`` begins one, with its header; the rest may be damaged. Raises OSError."""
    name = f"{entry_of(kind)}.npy".encode()
    with path.open("rb") as file:
        start = file.read(30 + len(name))  # the first entry of a zip file has its name at byte 30
    return start[:4] == b"PK\3\4" and start[30:] == name


def _array(held: zipfile.ZipFile, name: str) -> np.ndarray:
    with held.open(f"{name}.npy") as entry:
        return np.lib.format.read_array(entry, allow_pickle=False)


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[zipfile.ZipFile, dict[str, Any]]]:
    """The open file and its unsealed header. Errors in the block become Unreadable."""
    if not is_marked(path, kind):
        raise Unreadable(f"is damaged, or not a {kind} that mgu_jax wrote")
    if not zipfile.is_zipfile(path):  # it would end with a list of its entries
        raise Unreadable("is damaged (its end is missing)")
    try:
        with zipfile.ZipFile(path) as held:
            yield held, unseal(_array(held, entry_of(kind)).tobytes())
    except Unreadable:
        raise
    except Exception as error:  # zipfile and NumPy raise many kinds for a damaged file
        why = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise Unreadable(f"is damaged ({why})") from error


def read_header(path: Path, kind: str) -> Any:
    """The header, verified, without reading the arrays. Raises what ``read`` raises."""
    with _opened(path, kind) as (_, body):
        return body["header"]


def read(path: Path, kind: str) -> tuple[Arrays, Any]:
    """The arrays and the header, equal to the last bit to what was written.

    Raises:
        OSError: the file cannot be opened.
        Unreadable: it is damaged, of another format or kind, or written by another program.
    """
    with _opened(path, kind) as (held, body):
        arrays = {name: _array(held, name) for name in (entry.removesuffix(".npy") for entry in held.namelist())}
        del arrays[entry_of(kind)]
        for name in arrays.keys() & body["arrays"].keys():
            arrays[name] = arrays[name].view(np.dtype(body["arrays"][name]["dtype"]))
        verify(body, arrays)
        return arrays, body["header"]
