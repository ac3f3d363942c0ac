"""Checks of arguments that several adapters share."""

from collections.abc import Iterable, Mapping
from typing import Any

from mgu_jax import checks
from mgu_jax.layer.family import Cell, check_cell
from mgu_jax.layer.params import check_params
from mgu_jax.model import Model

# The options of ``scan`` that belong to a layer; its other arguments belong to a call.
OPTIONS = (
    "implementation",
    "save",
    "segment",
    "precision",
    "compute_dtype",
    "recurrent_dropout",
    "zoneout",
    "dropconnect",
)


def check_is_model(model: Any) -> None:
    """Raise TypeError unless model is an ``mgu_jax.Model``."""
    if not isinstance(model, Model):
        raise TypeError(f"model must be an mgu_jax.Model; got {checks.describe(model)}.")


def check_own_cell(cell: Any, kind: type) -> None:
    """Raise TypeError unless cell is of the class that this library defines for the framework."""
    if not isinstance(cell, kind):
        article = "an" if kind.__name__.startswith("MGU") else "a"
        raise TypeError(f"cell must be {article} {kind.__name__} of mgu_jax; got {checks.describe(cell)}.")


def check_left_out(cell: Any, kind: type, given: Mapping[str, Any]) -> None:
    """Raise ValueError if anything is given that only ``scan`` can do, since another loop runs the cell."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name} must be left out with a {type(cell).__name__} (it overrides {kind.__name__}.__call__, so "
                f"mgu_jax.scan cannot run it); got {checks.describe(value)}."
            )


def check_options(options: Iterable[str] | None) -> None:
    """Raise TypeError unless all names are static options of ``scan``."""
    for name in options or ():
        if name not in OPTIONS:
            raise TypeError(f"options must hold options of mgu_jax.scan, such as save; got {checks.describe(name)}.")


def check_params_fit(params: Any, cell: Cell, input_size: int, hidden_size: int) -> None:
    """Raise TypeError or ValueError unless params belong to the cell and have these sizes."""
    check_cell(cell)
    sizes = check_params(params, cell)
    if sizes != (input_size, hidden_size):
        raise ValueError(f"params must have sizes {(input_size, hidden_size)}; got {sizes}.")
