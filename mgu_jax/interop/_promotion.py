"""Numbers of mixed dtypes, as the frameworks' own cells take them: integers, bools, and floats of any precision."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mgu_jax import checks
from mgu_jax.layer.cell import advance, prepare, project
from mgu_jax.layer.family import Cell
from mgu_jax.layer.params import Params
from mgu_jax.layer.products import Products
from mgu_jax.layer.step import check_rows


def check_real(name: str, value: Any) -> None:
    """Raise TypeError unless value is ``None`` or an array of real numbers."""
    if value is not None and not (isinstance(value, jax.Array | np.ndarray) and checks.is_real(value.dtype)):
        raise TypeError(f"{name} must be an array of real numbers; got {checks.describe(value)}.")


def promote(params: Params, dtype: Any, inputs: Array, *states: Any) -> tuple[Params, Any, Any]:
    """(params, [inputs, *states], compute_dtype), all of one dtype: the one that the framework's own cells return.

    It is that to which JAX promotes the states and ``dtype``; ``None`` stands for the dtype of params and inputs.
    compute_dtype is the dtype to which the operands of products are rounded, ``None`` if to none.
    """
    arrays = [inputs, *states]
    given = [params.W_h, inputs] if dtype is None else []
    dtypes = {checks.dtype_of(a) for a in (*given, *states) if a is not None} | ({jnp.dtype(dtype)} if dtype else set())
    common = jnp.result_type(*dtypes)
    params, arrays = jax.tree.map(lambda a: jnp.asarray(a).astype(common), (params, arrays))
    return params, arrays, None if dtype is None or common == dtype else dtype


def step(params: Params, h: Array, x: Array, cell: Cell, dtype: Any = None) -> Array:
    """The new state, as ``mgu_jax.step`` returns it, from numbers of any real dtypes."""
    params, (x, h), compute_dtype = promote(params, dtype, x, h)
    check_rows(params, h, x, cell)
    product = Products(compute_dtype=checks.dtype_name("dtype", compute_dtype))
    return advance(prepare(params, cell), h, project(params, x, None, product), cell, product)[0]
