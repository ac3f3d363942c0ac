"""Published files: where they are searched, how they are verified, and how they are fetched.

A file is searched in ``--data-dir``, in the folder that MGU_JAX_DATA names, in a cache folder, and in installed
packages, in this order, packed or not, alone or in its archive. The first file with the right name is used. If its
content differs from the published one, it is named as damaged and never skipped. The unpacked content is verified,
since the same content may have been packed again. A set of many files may also be an unpacked folder.
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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from experiments.datasets.download import fetch
from experiments.run import BadRequest


@dataclass(frozen=True)
class Published:
    """A file whose content is known.

    Attributes:
        name: of the unpacked file, or folder.
        size: of its content in bytes.
        digest: sha256 of its content, or the md5 if its authors published that.
        holders: names of other files that hold it: a packed file, or an archive in which it has this name; or of other
            folders.
        url: the official address of a file that holds it.
        saved_as: the name of the downloaded file; one of the holders, or ``name``.
        installed: files in installed packages that hold it, "module/path" or an absolute path.
        printed_by: a command that prints it.
        otherwise: another file with the same data.
        members: of a set of many files, the pattern of their paths, such as "recordings/*.wav"; its content is theirs,
            as ``joined`` gives it.
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
    members: str = ""


class Found(NamedTuple):
    """The content of a published file, and where it was found."""

    file: Published
    content: bytes
    where: str


class DataSet(NamedTuple):
    """The parts of a data set, each ``Data`` or a ``Stream``, and its sources."""

    train: Any
    test: Any
    sources: dict[str, str]  # name of a file -> digest of its content, as in Published
    valid: Any = None
    symbols: tuple[str, ...] = ()  # of a text: the words or characters of the tokens 0, 1, ...


def cache() -> Path:
    """The folder for downloads."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mgu_jax"


def folders(data_dir: Path | None) -> list[Path]:
    """The folders to search, in their order."""
    named = [data_dir, os.environ.get("MGU_JAX_DATA"), cache()]
    return list(dict.fromkeys(Path(folder) for folder in named if folder))


def find(file: Published, how: str, data_dir: Path | None, download: bool = False) -> Found:
    """The verified content of a file.

    Args:
        file: which.
        how: a clause for errors that says how to get it.
        data_dir: the folder to search first.
        download: fetch it into the cache folder if it is not found.

    Raises:
        BadRequest: it is not found, differs from the published file, or cannot be fetched.
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
        if path.is_file() or (file.members and path.is_dir()):
            try:
                content = _content(path, file)
            except OSError as error:
                raise BadRequest(f"{path} cannot be read ({error.strerror}): {how}.") from error
            if not is_published(content, file):
                raise BadRequest(f"{path} is damaged or another file than the published one: {how}.")
            return Found(file, content, str(path))
    if file.printed_by and shutil.which(file.printed_by[0]):
        done = subprocess.run(file.printed_by, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if is_published(done.stdout, file):  # another program may have the same name
            return Found(file, done.stdout, " ".join(file.printed_by))
    return None


def _content(path: Path, file: Published) -> bytes:
    if path.is_dir():
        return joined((member.name, member.read_bytes()) for member in path.glob(file.members))
    return unpacked(path.read_bytes(), path.name, file.name, file.members)


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
        content = unpacked(packed, where.name, file.name, file.members)
        return is_published(content, file)

    fetch(file.url, where, good)
    return Found(file, content, str(where))


def is_published(content: bytes, file: Published) -> bool:
    """Whether size and digest of a content are the published ones."""
    kind = "md5" if len(file.digest) == 32 else "sha256"
    return len(content) == file.size and hashlib.new(kind, content).hexdigest() == file.digest


def unpacked(packed: bytes, holder: str, name: str, members: str = "") -> bytes:
    """The content of the file ``name``, taken from a packed one; empty if that is damaged or does not hold it.

    With ``members``, the content of all files of an archive whose paths match this pattern, ``joined``.
    """
    try:
        if holder == name:
            return packed
        if holder.endswith((".zip", ".tgz", ".tar.gz")):
            inside = _inside(packed, holder, members or name)
            return joined(inside) if members else next(inside, ("", b""))[1]
        unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(Path(holder).suffix)
        return unpack(packed) if unpack else b""
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError):
        return b""
    except (RuntimeError, ValueError):  # a zip with a password, of a later version, or with a wrong offset
        return b""


def _inside(packed: bytes, holder: str, pattern: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of an archive whose paths end like the pattern, without their folders."""
    if holder.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            for member in archive.namelist():
                if (path := PurePosixPath(member)).match(pattern):
                    yield path.name, archive.read(member)
        return
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if path.match(pattern) and (part := archive.extractfile(member)):
                yield path.name, part.read()


def joined(files: Iterable[tuple[str, bytes]]) -> bytes:
    """The contents of (name, content), sorted by their names, each after a line with its name and its size."""
    return b"".join(f"{name} {len(content)}\n".encode() + content for name, content in sorted(files))


def parted(content: bytes) -> dict[str, bytes]:
    """Name -> content of the files that ``joined`` joined."""
    files, at = {}, 0
    while at < len(content):
        end = content.index(b"\n", at)
        name, size = content[at:end].decode().rsplit(" ", 1)
        at = end + 1 + int(size)
        files[name] = content[end + 1 : at]
    return files
