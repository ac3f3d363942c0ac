"""A layer for reinforcement learning, in the form that agents with memory call ``ScannedRNN``.

    carry = initialize_carry(batch, H)                               # [B, H]
    carry, outputs = scanned_mgu(params, carry, (inputs, resets))    # [T, B, D] and [T, B] -> [T, B, H]

``resets[t]`` says that ``inputs[t]`` is the first observation of an episode: step t starts from zeros, and from the
carry otherwise. So a window may begin in the middle of an episode, from the carry of the window before, and hold the
beginnings of others. ``mgu_jax.step(params, carry, x, reset=resets[t])`` is one step of the same computation, for
acting. This file is for plain pytrees; ``scanned_linen`` and ``scanned_nnx`` are the same as modules of Flax.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mgu_jax import checks
from mgu_jax.layer.family import MGU, Cell, check_cell
from mgu_jax.layer.params import Params, check_features, check_params, check_resets, check_state
from mgu_jax.sequence import scan


def initialize_carry(batch: int | tuple[int, ...], size: int, dtype: Any = jnp.float32) -> Array:
    """The carry before the first step, and after every reset: zeros [B, H], or [..., H] for a tuple of batch axes.

    Raises:
        TypeError: dtype is not a floating dtype.
        ValueError: a size of the batch below 0, or a width below 1.
    """
    axes = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    for axis in axes:
        checks.check_size("batch", axis, 0)
    checks.check_size("size", size)
    checks.check_floating("dtype", dtype)
    return jnp.zeros((*axes, size), dtype)


def inputs_and_resets(carry: Any, x: Any, size: int | None = None) -> tuple[Array, Array]:
    """The two parts of x, with resets as bool, since some environments mark the end of an episode by 1.0.

    ``size`` is the width that carry must have; any if ``None``.

    Raises:
        TypeError: x is not a pair, or it or carry holds something other than arrays of numbers.
        ValueError: the shapes of inputs, resets and carry do not fit each other.
    """
    if not isinstance(x, tuple | list) or len(x) != 2:
        raise TypeError(f"x must be the pair (inputs, resets); got {checks.describe(x)}.")
    inputs, resets = x
    for name, value in (("inputs", inputs), ("resets", resets), ("carry", carry)):
        if not isinstance(value, jax.Array | np.ndarray):
            raise TypeError(f"{name} must be an array; got {checks.describe(value)}.")
    if inputs.ndim < 2:
        raise ValueError(f"inputs must have shape [T, ..., D]; got {list(inputs.shape)}.")
    if resets.dtype != bool:
        resets = checks.as_numbers("resets", resets) != 0
    check_resets(resets, inputs.shape[:-1], "inputs")
    if carry.ndim == 0:
        raise ValueError("carry must have shape [..., H]; got [].")
    width = carry.shape[-1] if size is None else size
    checks.check_shape("carry", carry, (*inputs.shape[1:-1], width), "the batch of inputs and the width of the layer")
    return inputs, resets


def scanned_mgu(
    params: Params,
    carry: Array,
    x: tuple[Array, Array],
    *,
    cell: Cell = MGU,
    reset_to: Array | None = None,
    **options: Any,
) -> tuple[Array, Array]:
    """(carry [..., H] after the last step, outputs [T, ..., H]), run by ``mgu_jax.scan``.

    Args:
        params: the layer's ``Params``.
        carry: [..., H], the state before the first step, which a reset at the first step replaces.
        x: the pair (inputs [T, ..., D], resets [T, ...]). Resets are bool, or numbers of which all but 0 are resets.
        cell: the member of the family that params belongs to.
        reset_to: [..., H], the state from which a step with a reset starts; zeros if ``None``. ``scan`` by itself would
            take the carry there.
        options: further arguments of ``scan``, such as ``save`` and ``compute_dtype``.

    Raises:
        TypeError, ValueError: as ``scan`` raises them; x is not a pair.
    """
    check_cell(cell)
    check_params(params, cell)
    inputs, resets = inputs_and_resets(carry, x)
    check_features("inputs", inputs, "T, ..., ", params, "W_h")
    check_state("carry", carry, inputs.shape[1:-1], params, "inputs")
    reset_to = jnp.zeros_like(carry) if reset_to is None else reset_to
    outputs, last = scan(params, inputs, carry, cell=cell, resets=resets, reset_to=reset_to, **options)
    return last, outputs
