"""Published files: where they are looked for, that they are what was published, and how they are fetched.

A file is looked for in ``--data-dir``, in the folder that MGU_JAX_DATA names, in a cache folder, and in what is
installed, in this order, packed or not, alone or in its archive. The first that bears its name decides: one that is not
what was published is named as damaged and never passed over. Checked is the unpacked content, since the same content
may have been packed anew.
"""

import gzip
import hashlib
import importlib.util
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.datasets.download import fetch
from experiments.run import BadRequest


@dataclass(frozen=True)
class Published:
    """A file with a content that is known.

    Attributes:
        name: of the unpacked file.
        size: its bytes.
        digest: its sha256; the md5 where that is what its makers published.
        holders: names of files that hold it, besides name itself: packed, or archives in which it has this name.
        url: the official address of a file that holds it.
        saved_as: what that is called on disk; one of the holders, or name.
        installed: files that packages bring, "module/path" or an absolute path.
        printed_by: a command that prints it.
        otherwise: another file with the same data.
    """

    name: str
    size: int
    digest: str
    holders: tuple[str, ...] = ()
    url: str | None = None
    saved_as: str = ""
    installed: tuple[str, ...] = ()
    printed_by: tuple[str, ...] = ()
    otherwise: "Published | None" = None


class Found(NamedTuple):
    """What a published file holds, and where that was."""

    file: Published
    content: bytes
    where: str


class DataSet(NamedTuple):
    """A set in its parts, each ``Data`` or a ``Stream``, and where it came from."""

    train: Any
    test: Any
    sources: dict[str, str]  # name of a file -> digest of its content, as in Published
    valid: Any = None
    symbols: tuple[str, ...] = ()  # of a text: what the tokens 0, 1, ... stand for


def cache() -> Path:
    """The folder that downloads go to."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mgu_jax"


def folders(data_dir: Path | None) -> list[Path]:
    """Where files are looked for, the first first."""
    named = [data_dir, os.environ.get("MGU_JAX_DATA"), cache()]
    return list(dict.fromkeys(Path(folder) for folder in named if folder))


def find(file: Published, how: str, data_dir: Path | None, download: bool = False) -> Found:
    """The file, checked.

    Args:
        file: which.
        how: a clause that says how to get it, for errors.
        data_dir: the folder to look into first.
        download: fetch it into the cache folder where it is nowhere.

    Raises:
        BadRequest: it is nowhere, is not what was published, or cannot be fetched.
    """
    where: Published | None = file
    while where is not None:
        if (found := _look(where, how, data_dir)) is not None:
            return found
        where = where.otherwise
    if download:
        return _download(file, how)
    places = ", ".join(map(str, folders(data_dir)))
    name = (*file.holders, file.name)[0]
    raise BadRequest(f"{name} is in none of the folders {places}: {how}.")


def _look(file: Published, how: str, data_dir: Path | None) -> Found | None:
    paths = [folder / name for folder in folders(data_dir) for name in (*file.holders, file.name)]
    for path in [*paths, *filter(None, map(_installed, file.installed))]:
        if path.is_file():
            try:
                content = unpacked(path.read_bytes(), path.name, file.name)
            except OSError as error:
                raise BadRequest(f"{path} cannot be read ({error.strerror}): {how}.") from error
            if not is_published(content, file):
                raise BadRequest(f"{path} is damaged or another file than the published one: {how}.")
            return Found(file, content, str(path))
    if file.printed_by and shutil.which(file.printed_by[0]):
        done = subprocess.run(file.printed_by, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if is_published(done.stdout, file):  # another program may have the name
            return Found(file, done.stdout, " ".join(file.printed_by))
    return None


def _installed(place: str) -> Path | None:
    if place.startswith("/"):
        return Path(place)
    module, _, inside = place.partition("/")
    spec = importlib.util.find_spec(module)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / inside


def _download(file: Published, how: str) -> Found:
    while file.url is None:
        if file.otherwise is None:
            raise BadRequest(f"{file.name} cannot be downloaded: {how}.")
        file = file.otherwise
    where = cache() / (file.saved_as or file.name)
    content = b""

    def good(packed: bytes) -> bool:
        nonlocal content
        content = unpacked(packed, where.name, file.name)
        return is_published(content, file)

    fetch(file.url, where, good)
    return Found(file, content, str(where))


def is_published(content: bytes, file: Published) -> bool:
    """Whether size and digest are the published ones."""
    kind = "md5" if len(file.digest) == 32 else "sha256"
    return len(content) == file.size and hashlib.new(kind, content).hexdigest() == file.digest


def unpacked(packed: bytes, holder: str, name: str) -> bytes:
    """The file of this name, out of the bytes of one that holds it; nothing where it is damaged or not in there."""
    try:
        if holder == name:
            return packed
        if holder.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                inside = [member for member in archive.namelist() if Path(member).name == name]
                return archive.read(inside[0]) if inside else b""
        if holder.endswith((".tgz", ".tar.gz")):
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                for member in archive:
                    if Path(member.name).name == name and (part := archive.extractfile(member)):
                        return part.read()
                return b""
        return {".gz": gzip.decompress, ".xz": lzma.decompress}[Path(holder).suffix](packed)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError):
        return b""
    except (RuntimeError, ValueError):  # a zip that asks for a password, a later version, or a place that is none
        return b""
