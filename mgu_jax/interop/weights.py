"""Weights in the names and layouts of ``flax.linen.MGUCell``, of PyTorch, and of the notebook.

Arrays are copied bit for bit and returned as NumPy arrays of the same dtype, so every round trip is exact. The one
exception is the sum of two biases, which is rounded; see ``from_torch``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mgu_jax import checks
from mgu_jax.interop.convert import convert, full, obstacle
from mgu_jax.layer.family import FLAX_MGU, MGU, UGRNN, Cell, check_cell
from mgu_jax.layer.params import Params, check_params
from mgu_jax.model import ModelParams, check_model_params

FLAX_NO_RESET = Cell(reset="none", update="1-f")  # flax.linen.MGUCell(reset_gate=False)


def _array(name: str, value: Any) -> np.ndarray:
    if str(getattr(value, "dtype", None)) == "torch.bfloat16":  # NumPy lacks it; float32 holds all of its numbers
        value = value.detach().float().cpu().numpy().astype(jnp.bfloat16)
    try:
        return np.array(np.asarray(value), order="C")
    except (TypeError, ValueError, RuntimeError) as error:
        what = str(error).partition("\n")[0].rstrip(".")
        raise TypeError(f"{name} must be convertible by np.asarray; got {checks.describe(value)} ({what}).") from error


def _entries(name: str, mapping: Any, wanted: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    if not isinstance(mapping, Mapping) or any(key not in mapping for key in wanted):
        came = sorted(map(str, mapping)) if isinstance(mapping, Mapping) else checks.describe(mapping)
        raise ValueError(f"{name} must hold {' and '.join(wanted)}; got {came}.")
    return {key: _array(f"{name}[{key!r}]", mapping[key]) for key in (*wanted, *optional) if key in mapping}


def _copied(params: Params, cell: Cell) -> Params:
    """``params`` as NumPy arrays, after a check that they belong to the cell."""
    check_params(params, cell)
    return Params(*(None if v is None else _array(name, v) for name, v in params._asdict().items()))


def _checked(arrays: Sequence[Any], cell: Cell) -> Params:
    """``Params`` of the arrays, after a check that they belong to the cell."""
    params = Params(*arrays)
    check_params(params, cell)
    return params


def from_flax(variables: Mapping[str, Any], cell: Cell | None = None) -> tuple[Params, Cell]:
    """(params, cell) that compute what a ``flax.linen.MGUCell`` computes.

    Args:
        variables: ``{"params": {"if": ..., "hf": ..., "in": ..., "hn": ...}}``, or the inner dict alone. For an
            ``nn.RNN``, pass the entry "cell".
        cell: the member to convert to. ``None`` gives ``FLAX_MGU`` if the cell has a reset gate ("hn" has a bias), and
            otherwise ``UGRNN``, which computes the same function with the gate's weights negated.

    Raises:
        TypeError: an entry that is not an array.
        ValueError: entries that are missing or do not fit each other, or a member that computes a different function.
    """
    variables = variables.get("params", variables) if isinstance(variables, Mapping) else variables
    _check_groups(variables)
    gate, candidate = (_entries(f"variables[{k!r}]", variables[k], ("kernel", "bias")) for k in ("if", "in"))
    hf = _entries("variables['hf']", variables["hf"], ("kernel",))
    hn = _entries("variables['hn']", variables["hn"], ("kernel",), ("bias",))
    params = Params(
        gate["kernel"], hf["kernel"], gate["bias"], candidate["kernel"], hn["kernel"], candidate["bias"], hn.get("bias")
    )
    theirs, ours = (FLAX_MGU, FLAX_MGU) if "bias" in hn else (FLAX_NO_RESET, UGRNN)
    cell = ours if cell is None else cell
    check_cell(cell)
    _check_flax(cell, obstacle(theirs, cell))
    return convert(params, theirs, cell), cell


def _check_flax(cell: Cell, why: str | None) -> None:
    """``why``, the reason why cell and Flax's compute different functions, is ``None``."""
    if why:
        raise ValueError(f"cell must compute the same function as flax.linen.MGUCell; got {cell}: {why}.")


def _check_groups(variables: Any) -> None:
    groups = ("if", "hf", "in", "hn")
    if not isinstance(variables, Mapping) or any(key not in variables for key in groups):
        came = sorted(map(str, variables)) if isinstance(variables, Mapping) else checks.describe(variables)
        raise ValueError(f"variables must hold {', '.join(groups)}, as those of flax.linen.MGUCell do; got {came}.")


def to_flax(params: Params, cell: Cell = FLAX_MGU) -> dict[str, Any]:
    """The variables of a ``flax.linen.MGUCell`` that computes the same; the inverse of ``from_flax``.

    They fit ``MGUCell(H, reset_gate=False)`` if the cell has no reset, as ``UGRNN``, and ``MGUCell(H)`` otherwise.

    Raises:
        TypeError, ValueError: params do not belong to cell, or Flax's cell cannot compute it, such as ``MGU``.
    """
    check_cell(cell)
    theirs = FLAX_NO_RESET if cell.reset == "none" else FLAX_MGU
    _check_flax(cell, obstacle(cell, theirs))
    p = convert(_copied(params, cell), cell, theirs)
    hn = {"kernel": p.U_h} | ({} if p.b_r is None else {"bias": p.b_r})
    gate, candidate = {"kernel": p.W_f, "bias": p.b_f}, {"kernel": p.W_h, "bias": p.b_h}
    return {"params": {"if": gate, "hf": {"kernel": p.U_f}, "in": candidate, "hn": hn}}


def _check_full(cell: Any) -> None:
    check_cell(cell)
    if cell != full(cell) or cell.layer_norm:
        raise ValueError(
            "cell must have W_f, b_f, dense U_f and U_h and no layer normalisation to be stored in weight_ih and "
            f"weight_hh (mgu_jax.interop.convert adds missing terms); got {cell}."
        )


def from_torch(state: Mapping[str, Any], cell: Cell = MGU, *, prefix: str = "", suffix: str = "") -> Params:
    """The ``Params`` of an MGU whose state dict has PyTorch's layout, the gate's rows above the candidate's.

    Args:
        state: ``weight_ih`` [2H, D] and ``weight_hh`` [2H, H], with ``bias`` [2H], with ``bias_ih`` and ``bias_hh``
            [2H] each as in ``torch.nn.GRU``, or without a bias. Values are tensors or anything that ``np.asarray``
            converts; bfloat16 tensors become NumPy arrays of ``jnp.bfloat16``, bit for bit. Other entries are ignored.
        cell: the member whose equations the module computes: how it resets, and whether f or 1 - f is the share of the
            state that the candidate takes. Two biases whose sum alone matters are added and rounded, so ``to_torch``
            cannot recover them separately. In a cell that resets after the product, b_r is the candidate's part of
            bias_hh.
        prefix, suffix: what surrounds the names, such as "rnn." and "_l0".

    Raises:
        TypeError: an entry that is not an array.
        ValueError: entries that are missing or have wrong shapes, or a member without some of these terms.
    """
    _check_full(cell)
    names = {n: f"{prefix}{n}{suffix}" for n in ("weight_ih", "weight_hh", "bias", "bias_ih", "bias_hh")}
    wanted = [names["weight_ih"], names["weight_hh"]]
    found = _entries("state", state, wanted, list(names.values())[2:])
    W, U = (found[name] for name in wanted)
    H = U.shape[-1] if U.ndim else 0
    for name, array, shape in ((wanted[1], U, (2 * H, H)), (wanted[0], W, (2 * H, *W.shape[1:2]))):
        if array.ndim != 2 or array.shape != shape:
            rule = "[2H, H]" if array is U else f"[{2 * H}, D] ({wanted[1]} is {list(U.shape)})"
            raise ValueError(f"state[{name!r}] must have shape {rule}; got {list(array.shape)}.")
    biases = {n: found[names[n]] for n in ("bias", "bias_ih", "bias_hh") if names[n] in found}
    if list(biases) not in ([], ["bias"], ["bias_ih", "bias_hh"]):
        one, *two = list(names.values())[2:]
        came = " and ".join(repr(names[name]) for name in biases)
        raise ValueError(f"state must hold {one!r}, or {two[0]!r} and {two[1]!r}, or no bias; got {came}.")
    for name, array in biases.items():
        if array.shape != (2 * H,):
            raise ValueError(f"state[{names[name]!r}] must have shape [{2 * H}]; got {list(array.shape)}.")
    b_r = None
    if cell.reset == "after":
        b_hh = biases.pop("bias_hh", np.zeros(2 * H, W.dtype))
        b_r = b_hh[H:]
        if b_hh[:H].any():
            biases["bias_hh"] = np.concatenate([b_hh[:H], np.zeros_like(b_r)])
    first, *others = biases.values() or [np.zeros(2 * H, W.dtype)]
    b = sum(others, first)
    gate, candidate = ([np.ascontiguousarray(a[rows].T) for a in (W, U, b)] for rows in (slice(H), slice(H, None)))
    return _checked((*gate, *candidate, b_r), cell)


def to_torch(
    params: Params, cell: Cell = MGU, *, prefix: str = "", suffix: str = "", two_biases: bool = False
) -> dict[str, np.ndarray]:
    """A state dict of ``weight_ih``, ``weight_hh`` and ``bias`` as NumPy arrays; the inverse of ``from_torch``.

    Args:
        params, cell: parameters and cell of one layer.
        prefix, suffix: what surrounds the names.
        two_biases: give ``bias_ih`` and ``bias_hh`` instead of ``bias``, for a module that has both; bias_hh is zero.
            A cell that resets after the product always has both, and b_r is in bias_hh.

    Raises:
        TypeError, ValueError: params do not belong to cell, or cell lacks some of these terms.
    """
    _check_full(cell)
    p = _copied(params, cell)
    state = {
        "weight_ih": np.concatenate([p.W_f.T, p.W_h.T]),
        "weight_hh": np.concatenate([p.U_f.T, p.U_h.T]),
    }
    bias = np.concatenate([p.b_f, p.b_h])
    if two_biases or p.b_r is not None:
        zeros = np.zeros_like(p.b_f)
        state |= {"bias_ih": bias, "bias_hh": np.concatenate([zeros, zeros if p.b_r is None else p.b_r])}
    else:
        state["bias"] = bias
    return {f"{prefix}{name}{suffix}": np.ascontiguousarray(array) for name, array in state.items()}


NOTEBOOK = ("W_f", "U_f", "W_h", "U_h", "W_y", "b_f", "b_h", "b_y")


def from_notebook(arrays: Sequence[Any]) -> ModelParams:
    """The parameters of ``mgu_jax.Model(D, (H,), K)`` from the notebook's list of arrays.

    Args:
        arrays: [W_f, U_f, W_h, U_h, W_y, b_f, b_h, b_y], where samples are columns: W [H, D], U [H, H], W_y [K, H],
            b [H, 1] and b_y [K, 1].

    Raises:
        TypeError: an entry that is not an array.
        ValueError: not eight entries, or shapes that do not fit each other.
    """
    if not isinstance(arrays, list | tuple) or len(arrays) != len(NOTEBOOK):
        raise ValueError(f"arrays must be the list [{', '.join(NOTEBOOK)}]; got {_counted(arrays)}.")
    found = {name: _array(name, a) for name, a in zip(NOTEBOOK, arrays, strict=True)}
    for name, array in found.items():
        if array.ndim != 2 or (name[0] == "b" and array.shape[1] != 1):
            rule = "shape [..., 1]" if name[0] == "b" else "two axes"
            raise ValueError(f"{name} must have {rule}, as in the notebook; got {list(array.shape)}.")
    p = {n: np.ascontiguousarray(a.T) if n[0] != "b" else a[:, 0].copy() for n, a in found.items()}
    layer = _checked([p[n] for n in Params._fields[:6]], MGU)
    H = len(layer.b_h)
    for name, shape in (("W_y", (H, p["W_y"].shape[1])), ("b_y", p["W_y"].shape[1:])):
        checks.check_shape(f"{name} transposed", p[name], shape, "from b_h and W_y")
    return ModelParams((layer,), p["W_y"], p["b_y"])


def _counted(arrays: Any) -> str:
    return f"{len(arrays)} entries" if isinstance(arrays, list | tuple) else checks.describe(arrays)


def to_notebook(params: ModelParams) -> list[np.ndarray]:
    """The notebook's list of arrays for a model with one layer of the paper's cell; the inverse of ``from_notebook``.

    Raises:
        TypeError: params is not a ModelParams.
        ValueError: more than one layer, or a part that the notebook does not have.
    """
    check_model_params(params)
    more = [name for name in ("backward", "h0", "embedding") if getattr(params, name) is not None]
    if len(params.layers) != 1 or more:
        came = ", ".join([f"layers={len(params.layers)}", *more])
        raise ValueError(f"params must have one layer and a readout and nothing else; got {came}.")
    p = _copied(params.layers[0], MGU)._asdict() | {"W_y": _array("W_y", params.W_y), "b_y": _array("b_y", params.b_y)}
    return [np.ascontiguousarray(p[n].T) if n[0] != "b" else p[n][:, None] for n in NOTEBOOK]
