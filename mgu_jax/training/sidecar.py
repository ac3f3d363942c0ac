"""What a checkpoint says of itself, so that an unfinished, damaged or foreign one is told from a whole one.

The sidecar ``mgu_jax.json`` in the folder of a checkpoint holds the version of this format, the size and the sha256 of
every other file, and facts: among them the step, and the dtype and shape of every leaf of the state. It is written
last, moved into place whole, and is the first to go when the folder goes. Beside a folder that is being written or
removed lies an empty file, its mark. So a process that is killed at any moment leaves whole checkpoints, and folders
with a mark and no sidecar, which are none and may go. A folder with neither has lost its sidecar, or is not ours.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgu_jax import checks

FORMAT = 1
NAME = "mgu_jax.json"
MARK = ".mgu_jax-unfinished"
_STEP = re.compile(r"0|[1-9]\d*")
_BEGUN = re.compile(rf"({_STEP.pattern})(\.orbax-checkpoint-tmp.*)?")


def describe(name: str, tree: Any) -> dict[str, str]:
    """The dtype and shape of every leaf, by its path. Raises TypeError for a leaf that orbax does not write."""
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        value = leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else np.asarray(leaf)
        known = any(jnp.issubdtype(value.dtype, kind) for kind in (np.number, np.bool_, jax.dtypes.prng_key))
        where = jax.tree_util.keystr(path)
        if not known or not value.size:
            what = checks.describe(leaf)
            raise TypeError(f"{name} must hold numbers, and arrays with elements, alone; {name}{where} is {what}.")
        described[where] = f"{value.dtype}{list(value.shape)}"
    return described


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _size_and_digest(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def mark_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{MARK}")


def write(folder: Path, facts: dict[str, Any]) -> None:
    """Make a checkpoint of a marked folder that is written. ``facts`` has "step", "state" as described, and more."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): _size_and_digest(path) for path in files}
    body = {"format": FORMAT, "facts": facts, "files": sums}
    draft = folder / f"{NAME}.part"
    with draft.open("w") as file:
        json.dump(body | {"sha256": _digest(body)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / NAME)
    mark_of(folder).unlink()


def is_in(folder: Path) -> bool:
    return (folder / NAME).exists()


def remove(folder: Path) -> None:
    """Remove a folder, and what orbax began of it; while it is half removed it has a mark and no sidecar."""
    mark_of(folder).touch()
    (folder / NAME).unlink(missing_ok=True)
    for path in (folder, *folder.parent.glob(f"{folder.name}.orbax-checkpoint-tmp*")):
        if path.exists():
            shutil.rmtree(path)
    mark_of(folder).unlink()


def tidy(folder: Path) -> None:
    """Remove what was begun in the folder of a run, and not finished."""
    for mark in folder.glob(f"*{MARK}"):
        place = mark.with_name(mark.name.removesuffix(MARK))
        if _STEP.fullmatch(place.name) and not is_in(place):
            remove(place)
        elif _STEP.fullmatch(place.name):
            mark.unlink()


def steps(folder: Path) -> list[int]:
    """Those of the checkpoints in the folder of a run, rising."""
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{NAME}") if _STEP.fullmatch(path.parent.name))


def strange(folder: Path) -> list[tuple[int, Path]]:
    """What has a checkpoint's name, or the one that orbax gives it first, and is neither whole nor marked as ours."""

    def known(step: str, path: Path) -> bool:
        return (path.name == step and is_in(path)) or mark_of(folder / step).exists()

    found = [(name[1], path) for path in folder.iterdir() if (name := _BEGUN.fullmatch(path.name))]
    # Twice, and then whether it is there: meanwhile another process may end a save, or remove what is old.
    rest = [(step, path) for step, path in found if not known(step, path) and not known(step, path) and path.is_dir()]
    return [(int(step), path) for step, path in rest]


def _body(folder: Path) -> dict[str, Any]:
    try:
        body = json.loads((folder / NAME).read_bytes())
        version, digest = body["format"], body.pop("sha256")
    except FileNotFoundError:
        raise ValueError(f"is damaged or another program's (it has no {NAME})") from None
    except (OSError, ValueError, TypeError, KeyError):
        raise ValueError(f"is damaged ({NAME} cannot be read)") from None
    if version != FORMAT:  # before the checksum, which another format may take in another way
        raise ValueError(f"is of another format ({version!r}; this version of mgu_jax reads {FORMAT})")
    if digest != _digest(body):
        raise ValueError(f"is damaged ({NAME} differs from its checksum)")
    return body


def facts(folder: Path) -> dict[str, Any]:
    """What was kept. Raises ValueError, as ``check``, for a sidecar that is not as it was written."""
    return _body(folder)["facts"]


def check(folder: Path, step: int, like: dict[str, str] | None = None) -> None:
    """Read all of a checkpoint.

    Raises:
        ValueError: "is damaged (...)", "is of another format (...)", or "is of another model (...)", optimiser or
            validation: not one of the state that ``like`` describes.
    """
    body = _body(folder)
    for name, saved in body["files"].items():
        try:
            found = _size_and_digest(folder / name)
        except OSError as error:
            raise ValueError(f"is damaged ({name}: {error.strerror})") from error
        if found[0] != saved[0]:
            raise ValueError(f"is damaged ({name} has {found[0]:,} bytes of {saved[0]:,})")
        if found != saved:
            raise ValueError(f"is damaged ({name} differs from its checksum)")
    state, named = body["facts"]["state"], body["facts"]["step"]
    if named != step:
        raise ValueError(f"is damaged (it is a copy of that of step {named})")
    for path in state if like is None else state | like:
        there = state.get(path, "not there")
        here = there if like is None else like.get(path, "not there")
        if there != here:
            part = re.match(r"(?:\.members)?\.(best|opt_state)\b", path)
            other = {"best": "validation", "opt_state": "optimiser"}[part[1]] if part else "model"
            raise ValueError(f"is of another {other} (state{path} is {there}, like{path} is {here})")
