"""All steps at once, for the members of the family that are linear in the state.

Where neither gate nor candidate sees the state, a step is h_t = A_t*h_{t-1} + b_t with A_t = 1 - u_t and b_t = w_t*c_t.
Both are known for all steps beforehand, so ``affine`` gives all states. ``newton`` has the other members.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from mgu_jax.layer.affine import composed
from mgu_jax.layer.bptt import Marks, Plan, assert_shapes
from mgu_jax.layer.cell import advance, prepare, project, shares
from mgu_jax.layer.params import Params


@partial(jax.jit, static_argnums=0)
def parallel(
    plan: Plan, params: Params, xs: Array, h0: Array, h_reset: Array | None, marks: Marks
) -> tuple[Array, Array]:
    """hs [T, B, H] and h_last [B, H] from xs [T, B, D], h0 and h_reset [B, H], for a cell that is ``linear``."""
    assert_shapes(xs, h0, h_reset, marks)
    T = xs.shape[0]
    if T == 0:
        return jnp.zeros((0, *h0.shape), h0.dtype), h0
    inputs = project(params, xs, marks.alpha, plan.product)
    zeros = jnp.zeros((T, *h0.shape), h0.dtype)
    b, gates = advance(prepare(params, plan.cell), zeros, inputs, plan.cell, plan.product)  # from h = 0, so w*c
    A = 1 - shares(gates.f, marks.alpha, plan.cell)[0]
    if marks.reset is not None and h_reset is not None:  # the step starts from h_reset, whatever came before
        b, A = jnp.where(marks.reset, A * h_reset[None] + b, b), jnp.where(marks.reset, 0, A)
    A, b = composed(A, b, plan.reverse)
    hs = A * jnp.broadcast_to(h0, A.shape) + b
    return hs, hs[0 if plan.reverse else -1]
