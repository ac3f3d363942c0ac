"""Checks of arguments that several functions of this room share."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from mgu_jax import checks
from mgu_jax.layer import mesh
from mgu_jax.layer.family import Cell, check_cell
from mgu_jax.layer.params import Params, check_features, check_params, check_state


def checked_run(params: Params, xs: Any, h0: Any, cell: Cell) -> Array:
    """h0 [..., H], zeros for ``None``. Raise TypeError or ValueError unless it fits params and xs [T, ..., D]."""
    check_cell(cell)
    _, H = check_params(params, cell)
    check_features("xs", xs, "T, ..., ", params, "W_h")
    if xs.shape[0] < 1:
        raise ValueError(f"xs must have at least one step; got {list(xs.shape)}.")
    if h0 is None:
        return jnp.zeros((*xs.shape[1:-1], H), checks.dtype_of(params.W_h))
    check_state("h0", h0, xs.shape[1:-1], params)
    return h0


def split(*arrays: Any, leading: int = 0) -> PartitionSpec:
    """How the batch axes of arrays [..., features] are split on a mesh with explicit axes, after ``leading`` others."""
    return PartitionSpec(*[None] * leading, *mesh.merged(*(mesh.spec(array)[:-1] for array in arrays)))


def check_factorised(params: Params) -> None:
    """Raise TypeError unless params is of a dtype in which matrices can be factorised."""
    dtype = checks.dtype_of(params.W_h)
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"params must be float32 or float64 (matrices are factorised); got {dtype}.")


def check_least(name: str, value: Any, least: float = 0) -> None:
    """Raise ValueError unless value is a number of at least ``least``. A traced number passes."""
    if not checks.is_number(value) or (checks.is_concrete(value) and not float(value) >= least):
        raise ValueError(f"{name} must be a number of at least {least}; got {checks.describe(value)}.")
