"""All steps at once, for the members of the family that are linear in the state.

Where neither gate nor candidate sees the state, a step is h_t = A_t*h_{t-1} + B_t with A_t = 1 - u_t and B_t = u_t*c_t,
and both are known for all steps beforehand. Two steps in a row are one step of the same form,

    (A_2, B_2) after (A_1, B_1)  =  (A_1*A_2, A_2*B_1 + B_2)

and this composition is associative, so about log2(T) rounds compose all steps (Blelloch 1990; Martin and Cundy 2018,
arXiv 1709.04057). This takes more arithmetic than the loop, and is faster where the latency of a step matters more than
its arithmetic, as on a GPU.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from mgu_jax.layer.bptt import Marks, Plan, assert_shapes
from mgu_jax.layer.cell import advance, prepare, project, share
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
    B, gates = advance(prepare(params, plan.cell), zeros, inputs, plan.cell, plan.product)  # from h = 0, so u*c
    A = 1 - share(gates.f, marks.alpha, plan.cell)
    if marks.reset is not None and h_reset is not None:  # the step starts from h_reset, whatever came before
        B, A = jnp.where(marks.reset, A * h_reset[None] + B, B), jnp.where(marks.reset, 0, A)

    def after(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        (A_1, B_1), (A_2, B_2) = first, second
        return A_1 * A_2, A_2 * B_1 + B_2

    A, B = lax.associative_scan(after, (A, B), reverse=plan.reverse)
    hs = A * jnp.broadcast_to(h0, A.shape) + B
    return hs, hs[0 if plan.reverse else -1]
