"""A model in one file: its parameters, and the specification to build it from.

    files.save("model.safetensors", model, params)
    model, params = files.load("model.safetensors")

``.npz`` needs NumPy alone, ``.safetensors`` the extra ``safetensors``. Arrays have the names of ``ModelParams``:
"layers.0.W_f", "W_y". The specification is the sealed header of archive.py: an entry of the npz file, or metadata of
the safetensors file. Nothing in a file is run as code.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mgu_jax import archive, checks
from mgu_jax.extras import require
from mgu_jax.interop.convert import named
from mgu_jax.layer.family import Cell
from mgu_jax.layer.initial import init
from mgu_jax.layer.params import check_params
from mgu_jax.model import Model

_KIND = "model"


def _describe(of: Any, params: Any) -> dict[str, Any]:
    """The specification as JSON can hold it: the arguments of ``mgu_jax.Model``, or of ``mgu_jax.init``."""
    if isinstance(of, Cell):
        D, H = check_params(params, of)
        return {"cell": asdict(of), "input_size": D, "hidden_size": H}
    if not isinstance(of, Model):
        raise TypeError(f"model must be an mgu_jax.Model or a Cell; got {checks.describe(of)}.")
    options = asdict(of) | {"dtype": of.dtype.name}
    precision = options["precision"]
    if isinstance(precision, lax.DotAlgorithmPreset):
        raise ValueError(f"precision must be a name or a jax.lax.Precision to be saved; got {precision}.")
    options["precision"] = precision.name.lower() if isinstance(precision, lax.Precision) else precision
    return {"model": options}


def _build(specification: dict[str, Any]) -> tuple[Any, Any]:
    """(model, its ``ModelParams``) or (cell, its ``Params``), with shapes in the place of arrays."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    if "model" in specification:
        options: dict[str, Any] = dict(specification["model"])
        options["cell"] = Cell(**options["cell"])
        made = Model(**options)
        return made, jax.eval_shape(made.init, key)
    cell, sizes = Cell(**specification["cell"]), (specification["input_size"], specification["hidden_size"])
    return cell, jax.eval_shape(lambda key: init(key, *sizes, cell), key)


def check_like(what: str, arrays: dict[str, Any], like: Any) -> None:
    """Raise ValueError or TypeError unless the arrays have the names and shapes of ``like``, and one dtype."""
    came, wanted = ({name: list(a.shape) for name, a in of.items()} for of in (arrays, named(like)))
    for name in sorted(came.keys() | wanted.keys()):
        if came.get(name) != wanted.get(name):
            rule = f"hold {name} {wanted[name]}" if name in wanted else f"hold no {name}"
            raise ValueError(f"{what} must {rule}, by the specification; got {came.get(name)}.")
    dtypes = {np.dtype(a.dtype).name for a in arrays.values()}
    if len(dtypes) != 1:
        raise TypeError(f"{what} must have one dtype; got {', '.join(sorted(dtypes))}.")
    checks.check_floating(what, *dtypes)


def save(path: str | Path, model: Any, params: Any) -> None:
    """Write a model and its parameters, or a cell and a layer's, to a file that ``load`` reads.

    A file that is there is replaced when the new one is complete.

    Args:
        path: ends in ".safetensors" or ".npz".
        model: a ``Model``, with ``ModelParams``; or a ``Cell``, with ``Params``.
        params: of one dtype, which the file keeps.

    Raises:
        ImportError: safetensors is not installed.
        OSError: the file cannot be written.
        TypeError: path is not a path, model is neither a model nor a cell, or params are of another kind.
        ValueError: another ending, or params that do not fit the model.
    """
    path = checks.check_path("path", path)
    checks.check_choice("the ending of path", path.suffix, (".safetensors", ".npz"))
    specification = _describe(model, params)
    arrays = {name: np.array(a, order="C") for name, a in named(params).items()}
    check_like("params", arrays, _build(specification)[1])
    if path.suffix == ".npz":
        archive.write(path, _KIND, arrays, specification)
        return
    metadata = {archive.entry_of(_KIND): archive.seal(arrays, specification)}
    content = require("safetensors.numpy", "safetensors").save(arrays, metadata=metadata)
    with archive.replacing(path) as file:
        file.write(content)


def _read_safetensors(path: Path) -> tuple[archive.Arrays, Any]:
    """What ``archive.read`` gives for an npz file."""
    safetensors = require("safetensors", "safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as held:
            metadata = held.metadata() or {}
            arrays = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise archive.Unreadable(f"is damaged ({error})") from error
    if archive.entry_of(_KIND) not in metadata:
        raise archive.Unreadable(f"is not a {_KIND} that mgu_jax wrote")
    body = archive.unseal(metadata[archive.entry_of(_KIND)])
    archive.verify(body, arrays)
    return arrays, body["header"]


def load(path: str | Path) -> tuple[Any, Any]:
    """(model, params), or (cell, params), equal to what was saved to the last bit.

    Raises:
        ImportError: safetensors is not installed.
        OSError: the file cannot be opened.
        TypeError: path is not a path; or the file holds float64, and x64 is not enabled.
        ValueError: another ending, or a file that is damaged or that ``save`` did not write.
    """
    path = checks.check_path("path", path)
    checks.check_choice("the ending of path", path.suffix, (".safetensors", ".npz"))
    try:
        arrays, specification = archive.read(path, _KIND) if path.suffix == ".npz" else _read_safetensors(path)
    except archive.Unreadable as error:
        raise ValueError(f"path must be a file that mgu_jax.interop.files.save wrote; {path} {error}.") from error
    try:
        made, like = _build(specification)
    except (KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {str(error).rstrip('.')}"
        raise ValueError(f"path must hold a model that this version of mgu_jax knows; got {path} ({why}).") from error
    check_like(str(path), arrays, like)
    dtype = next(iter(arrays.values())).dtype
    if checks.dtype_of(next(iter(arrays.values()))) != dtype:
        raise TypeError(f"{path} holds {dtype}, which needs jax.config.update('jax_enable_x64', True).")
    return made, jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[name]) for name in named(like)])
