"""One member's parameters as another's, where the function stays the same; and parameters as a dict.

What a member lacks is zero in a richer one, and a diagonal is a matrix:

    MGU2 in MGU1 in MGU,  MGU3 in MGU1          W_f = 0, b_f = 0
    DIAGONAL_MGU in MGU and in RESET_AFTER_MGU  U = diag(u), and f scales before the product what it scales after it
    "f" in "1-f", without a reset               W_f, U_f and b_f negated, since 1 - sigmoid(z) = sigmoid(-z)

All of it is exact to the last bit of the parameters, and nothing is guessed from their values.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgu_jax import checks
from mgu_jax.layer.family import Cell, check_cell
from mgu_jax.layer.params import Params, check_params


def to_dict(params: Params) -> dict[str, Any]:
    """The terms that are there, by their names."""
    return {name: value for name, value in params._asdict().items() if value is not None}


def from_dict(arrays: Mapping[str, Any]) -> Params:
    """The inverse of ``to_dict``.

    Raises:
        TypeError: arrays are no mapping.
        ValueError: a name that ``Params`` has not.
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays must be a mapping of names to arrays; got {checks.describe(arrays)}.")
    for name in arrays:
        checks.check_choice("a name", name, Params._fields)
    return Params(*(arrays.get(name) for name in Params._fields))


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their places, such as "layers.0.W_f"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def obstacle(cell: Cell, to: Cell) -> str | None:
    """Why ``to`` cannot compute what ``cell`` computes; ``None`` if it can."""
    sees = "h" in cell.candidate
    if cell.activation != to.activation:
        return f"{cell.activation} is another function than {to.activation}"
    if cell.layer_norm != to.layer_norm:
        return "layer normalisation is another function than none"
    if lost := set(cell.gate) - set(to.gate):
        return (
            f"its gate has no place for {' and '.join({'x': 'W_f', 'h': 'U_f', 'b': 'b_f'}[a] for a in sorted(lost))}"
        )
    if sees and "h" not in to.candidate:
        return "its candidate has no place for U_h"
    if cell.recurrence == "dense" and to.recurrence == "diagonal" and (sees or "h" in cell.gate):
        return "a dense U mixes the units, and a diagonal one cannot"
    commutes = cell.recurrence == "diagonal" and (cell.reset, to.reset) == ("before", "after")
    if sees and cell.reset != to.reset and not commutes:
        return f"a reset {cell.reset!r} is another function than {to.reset!r}"
    if cell.update != to.update and cell.reset != "none":
        return "its update takes 1 - f for f, and f is also in the reset, where it stays"
    return None


def convert(params: Params, cell: Cell, to: Cell) -> Params:
    """The parameters with which ``to`` computes what ``cell`` computes with ``params``. NumPy arrays stay NumPy's.

    Raises:
        TypeError: cell or to is no Cell, or params no Params.
        ValueError: params are not of cell, or no parameters can do it: a dense recurrence is no diagonal one, a reset
            before the product none after it, and Flax's sign not the paper's where there is a reset.
    """
    check_cell(cell)
    check_cell(to)
    if why := obstacle(cell, to):
        raise ValueError(f"to must be a member that can compute the same function as cell; got {to}: {why}.")
    D, H = check_params(params, cell)
    W_h = params.W_h
    xp: Any = np if isinstance(W_h, np.ndarray) else jnp

    def one(name: str, value: Any, shape: Any) -> Any:
        if shape is None:
            return None
        if value is None:  # a gain meets rows of zeros then
            return xp.zeros(shape, W_h.dtype)
        return xp.diag(xp.asarray(value)) if value.ndim < len(shape) else value

    shapes = to.shapes(D, H)
    found = Params(*map(one, Params._fields, params, shapes))
    if cell.update == to.update:
        return found
    return found._replace(**{n: -v for n in ("W_f", "U_f", "b_f") if (v := getattr(found, n)) is not None})


def full(cell: Cell) -> Cell:
    """The member of the same function in which no term is missing: gate and candidate see all, by dense matrices."""
    return replace(cell, gate="xhb", candidate="xhb", recurrence="dense")
