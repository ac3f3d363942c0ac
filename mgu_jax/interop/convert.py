"""Parameters of one member of the family as those of another that computes the same function; parameters as a dict.

A term that the first member lacks is zero in the second, and a diagonal becomes a matrix:

    MGU2 to MGU1 to MGU,  MGU3 to MGU1         W_f = 0, b_f = 0
    DIAGONAL_MGU to MGU or RESET_AFTER_MGU     U = diag(u); a diagonal product and the scaling by f commute
    update "f" to "1-f", without a reset       W_f, U_f and b_f are negated, since 1 - sigmoid(z) = sigmoid(-z)

The conversion copies every parameter bit for bit, apart from the sign. Whether it is possible depends on the two
members alone and never on the values of the parameters.
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
    """The terms that the cell has, by name."""
    return {name: value for name, value in params._asdict().items() if value is not None}


def from_dict(arrays: Mapping[str, Any]) -> Params:
    """The ``Params`` of a dict; the inverse of ``to_dict``.

    Raises:
        TypeError: arrays is not a mapping.
        ValueError: a name that ``Params`` does not have.
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays must be a mapping of names to arrays; got {checks.describe(arrays)}.")
    for name in arrays:
        checks.check_choice("a name", name, Params._fields)
    return Params(*(arrays.get(name) for name in Params._fields))


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path, such as "layers.0.W_f"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def obstacle(cell: Cell, to: Cell) -> str | None:
    """Why ``to`` cannot compute what ``cell`` computes; ``None`` if it can."""
    sees = "h" in cell.candidate
    if cell.activation != to.activation:
        return f"the activations {cell.activation} and {to.activation} are different functions"
    if cell.beta != to.beta:
        return f"beta={cell.beta:g} and beta={to.beta:g} compute different functions"
    if cell.layer_norm != to.layer_norm:
        return "a cell with layer normalisation computes a different function from one without"
    if lost := set(cell.gate) - set(to.gate):
        names = {"x": "W_f", "h": "U_f", "b": "b_f"}
        return f"its gate lacks {' and '.join(names[term] for term in sorted(lost))}"
    if sees and "h" not in to.candidate:
        return "its candidate lacks U_h"
    if cell.recurrence == "dense" and to.recurrence == "diagonal" and (sees or "h" in cell.gate):
        return "a diagonal recurrence cannot mix the units as a dense one does"
    commutes = cell.recurrence == "diagonal" and (cell.reset, to.reset) == ("before", "after")
    if sees and cell.reset != to.reset and not commutes:
        return f"reset={cell.reset!r} and reset={to.reset!r} compute different functions"
    if cell.update != to.update and cell.reset != "none":
        return "exchanging f and 1 - f in the update would also exchange them in the reset"
    return None


def convert(params: Params, cell: Cell, to: Cell) -> Params:
    """The parameters with which ``to`` computes what ``cell`` computes with ``params``; NumPy arrays if those are.

    Raises:
        TypeError: cell or to is not a Cell, or params not a Params.
        ValueError: params do not belong to cell, or ``to`` cannot compute the function. A dense recurrence cannot
            become a diagonal one, a reset before the product cannot become one after it, and a cell with a reset
            cannot exchange f and 1 - f.
    """
    check_cell(cell)
    check_cell(to)
    if why := obstacle(cell, to):
        raise ValueError(f"to must be able to compute the function of cell; got {to}: {why}.")
    D, H = check_params(params, cell)
    W_h = params.W_h
    xp: Any = np if isinstance(W_h, np.ndarray) else jnp

    def one(name: str, value: Any, shape: Any) -> Any:
        if shape is None:
            return None
        if value is None:  # zero is right for a gain too: it scales rows of zeros
            return xp.zeros(shape, W_h.dtype)
        return xp.diag(xp.asarray(value)) if value.ndim < len(shape) else value

    shapes = to.shapes(D, H)
    found = Params(*map(one, Params._fields, params, shapes))
    if cell.update == to.update:
        return found
    gate = {name: getattr(found, name) for name in ("W_f", "U_f", "b_f")}
    return found._replace(**{name: -value for name, value in gate.items() if value is not None})


def full(cell: Cell) -> Cell:
    """The member with every term and dense matrices to which ``convert`` can bring ``cell``."""
    return replace(cell, gate="xhb", candidate="xhb", recurrence="dense")
