"""Running a cell over time: the public ``scan``, which checks its arguments and picks an implementation.

``definition`` is what every implementation has to equal: one ``lax.scan`` of ``step``, differentiated by JAX.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from mgu_jax import checks
from mgu_jax.bptt import Plan, bptt
from mgu_jax.cell import MGU, Cell, advance, check_cell, project
from mgu_jax.params import Params
from mgu_jax.products import Products
from mgu_jax.reverse_only import reverse_only


@partial(jax.jit, static_argnums=0)
def definition(plan: Plan, params: Params, xs: Array, h0: Array) -> tuple[Array, Array]:
    """xs [T, B, D], h0 [B, H] -> hs [T, B, H], h_last [B, H]: one step after another."""

    def body(h: Array, x: Array) -> tuple[Array, Array]:
        h, _ = advance(params, h, project(params, x, plan.product), plan.cell, plan.product)
        return h, h

    h_last, hs = lax.scan(body, h0, xs, reverse=plan.reverse)
    return hs, h_last


IMPLEMENTATIONS = {"manual": bptt, "autodiff": definition}


def scan(
    params: Params,
    xs: Array,
    h0: Array | None = None,
    *,
    cell: Cell = MGU,
    reverse: bool = False,
    implementation: str | None = None,
    precision: Any = None,
) -> tuple[Array, Array]:
    """Run a cell over a sequence.

    Args:
        params: the layer's ``Params``.
        xs: [T, ..., D], time first, then any number of batch axes, none included. T may be 0.
        h0: [..., H], the state before the first step; zeros if ``None``.
        cell: the member of the family that params belongs to.
        reverse: run from the last step to the first; hs stays in the order of time.
        implementation: "manual" (the hand-written backward of ``mgu_jax.bptt``; reverse mode only) or "autodiff" (the
            definition, differentiated by JAX in any mode; slower, and several times the memory). ``None`` is "manual".
        precision: of all products, forward and backward: "default", "high", "highest", or one of JAX's own objects.

    Returns:
        hs [T, ..., H], the state after every step, and h_last [..., H], the state after the last step that ran.

    Raises:
        TypeError: an argument is no array, or not of the floating dtype of params; at differentiation, forward mode
            through "manual".
        ValueError: shapes that do not fit each other, or an unknown implementation or precision.
    """
    implementation = "manual" if implementation is None else implementation
    checks.check_choice("implementation", implementation, tuple(IMPLEMENTATIONS))
    check_cell(cell)
    _, hidden_size = checks.check_params(params, cell)
    checks.check_features("xs", xs, "T, ..., ", params, "W_h")
    steps, *batch, features = xs.shape
    if h0 is None:
        h0 = jnp.zeros((*batch, hidden_size), checks.dtype_of(params.W_h))
    checks.check_features("h0", h0, "..., ", params, "b_h")
    checks.check_shape("h0", h0, (*batch, hidden_size), "the batch of xs and the width of params")

    rows = math.prod(batch)  # one batch axis inside, whatever came
    plan = Plan(cell, bool(reverse), Products(precision))
    arguments = (params, xs.reshape(steps, rows, features), h0.reshape(rows, hidden_size))
    if implementation == "manual":
        arguments = reverse_only(arguments)
    hs, h_last = IMPLEMENTATIONS[implementation](plan, *arguments)
    return hs.reshape(steps, *batch, hidden_size), h_last.reshape(*batch, hidden_size)
