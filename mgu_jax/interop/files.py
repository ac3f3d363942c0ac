"""A model in one file: its parameters, and the specification to build it from.

    files.save("model.safetensors", model, params)
    model, params = files.load("model.safetensors")

``.safetensors`` (extra ``safetensors``) has the specification in its header, ``.npz`` (NumPy alone) as an entry. Arrays
have the names of ``ModelParams``: "layers.0.W_f", "W_y". Nothing in a file is run as code.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mgu_jax import checks
from mgu_jax.extras import require
from mgu_jax.interop.convert import named
from mgu_jax.layer.family import Cell
from mgu_jax.layer.initial import init
from mgu_jax.layer.params import check_params
from mgu_jax.model import Model

FORMAT = 1
_SPECIFICATION = "mgu_jax"


def _describe(of: Any, params: Any) -> dict[str, Any]:
    """The specification, in what JSON can hold: the arguments of ``mgu_jax.Model``, or of ``mgu_jax.init``."""
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
    """(model, its ``ModelParams`` of shapes), or (cell, its ``Params`` of shapes)."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    if "model" in specification:
        options: dict[str, Any] = dict(specification["model"])
        options["cell"] = Cell(**options["cell"])
        made = Model(**options)
        return made, jax.eval_shape(made.init, key)
    cell, sizes = Cell(**specification["cell"]), (specification["input_size"], specification["hidden_size"])
    return cell, jax.eval_shape(lambda key: init(key, *sizes, cell), key)


def check_like(what: str, arrays: dict[str, Any], like: Any) -> None:
    """The arrays have the names and the shapes of ``like``, and one dtype."""
    came, wanted = ({name: list(a.shape) for name, a in of.items()} for of in (arrays, named(like)))
    for name in sorted(came.keys() | wanted.keys()):
        if came.get(name) != wanted.get(name):
            rule = f"hold {name} {wanted[name]}" if name in wanted else f"hold no {name}"
            raise ValueError(f"{what} must {rule}, by the specification; got {came.get(name)}.")
    dtypes = {np.dtype(a.dtype).name for a in arrays.values()}
    if len(dtypes) != 1:
        raise TypeError(f"{what} must have one dtype; got {', '.join(sorted(dtypes))}.")
    checks.check_floating(what, *dtypes)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """Of all numbers; zip files have their own sums, safetensors has none."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def save(path: str | Path, model: Any, params: Any) -> None:
    """Write a model and its parameters, or a cell and a layer's, to a file that ``load`` reads.

    Args:
        path: ends in ".safetensors" or ".npz".
        model: what ``mgu_jax.Model`` made, with ``ModelParams``; or a ``Cell``, with ``Params``.
        params: of one dtype, which the file keeps.

    Raises:
        ImportError: safetensors is not installed.
        TypeError: no path, neither a model nor a cell, or params of another kind.
        ValueError: another ending, or params that are not the model's.
    """
    path = checks.check_path("path", path)
    checks.check_choice("the ending of path", path.suffix, (".safetensors", ".npz"))
    specification = {"format": FORMAT} | _describe(model, params)
    arrays = {name: np.array(a, order="C") for name, a in named(params).items()}
    check_like("params", arrays, _build(specification)[1])
    specification["dtype"] = next(iter(arrays.values())).dtype.name  # npz forgets that of bfloat16
    specification["sha256"] = _digest(arrays)
    text = json.dumps(specification)
    if path.suffix == ".npz":
        entries: Any = arrays | {_SPECIFICATION: np.array(text)}
        np.savez(path, **entries)
    else:
        require("safetensors.numpy", "safetensors").save_file(arrays, path, metadata={_SPECIFICATION: text})


def _read(path: Path) -> tuple[dict[str, np.ndarray], str]:
    if path.suffix == ".npz":
        with path.open("rb") as file, np.load(file) as held:
            arrays = dict(held)
        if _SPECIFICATION not in arrays:
            raise ValueError("it has no specification")
        return arrays, str(arrays.pop(_SPECIFICATION))
    with require("safetensors", "safetensors").safe_open(path, framework="numpy") as held:
        if _SPECIFICATION not in (metadata := held.metadata() or {}):
            raise ValueError("it has no specification")
        return {name: held.get_tensor(name) for name in held.keys()}, metadata[_SPECIFICATION]  # noqa: SIM118


def load(path: str | Path) -> tuple[Any, Any]:
    """(model, params), or (cell, params), as they were saved, to the last bit.

    Raises:
        ImportError: safetensors is not installed.
        OSError: the file cannot be read.
        TypeError: no path; or it holds float64, and x64 is not enabled.
        ValueError: another ending, or a file that ``save`` did not write.
    """
    path = checks.check_path("path", path)
    checks.check_choice("the ending of path", path.suffix, (".safetensors", ".npz"))
    if path.suffix == ".safetensors":
        require("safetensors", "safetensors")
    try:
        arrays, text = _read(path)
        specification = json.loads(text)
        if specification["format"] != FORMAT:
            raise ValueError(f"it is of format {specification['format']}, and this version reads {FORMAT}")
        made, like = _build(specification)
        dtype = np.dtype(specification["dtype"])
        arrays = {name: a.view(dtype) if a.dtype.kind == "V" else a for name, a in arrays.items()}
    except OSError:
        raise
    except Exception as error:  # each library has its own for a damaged file
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0].rstrip('.')}"
        raise ValueError(f"path must be a file that mgu_jax.interop.files.save wrote; got {path} ({why}).") from error
    check_like(str(path), arrays, like)
    if specification.get("sha256") not in (None, _digest(arrays)):  # earlier files have none
        raise ValueError(
            f"path must be a file with the arrays that were saved; got {path}, whose arrays have another sha256."
        )
    if checks.dtype_of(next(iter(arrays.values()))) != dtype:
        raise TypeError(f"{path} holds {dtype}, which needs jax.config.update('jax_enable_x64', True).")
    return made, jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[name]) for name in named(like)])
