"""Members of the family that are linear in the state, all steps at once.

Where neither gate nor candidate sees the state, a step is h_t = A_t*h_{t-1} + B_t with A_t = 1 - u_t and B_t = u_t*c_t,
both known for all steps beforehand. Two steps make one of the same form,

    (A_2, B_2) after (A_1, B_1)  =  (A_1*A_2, A_2*B_1 + B_2)

and since this is associative, log2(T) rounds make them all (Blelloch 1990; Martin and Cundy 2018, arXiv 1709.04057).
More work than the loop, and worth it where a step of the loop costs more than its arithmetic, as on a GPU.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from mgu_jax.layer.bptt import Marks, Plan
from mgu_jax.layer.cell import advance, arrange, project, share
from mgu_jax.layer.params import Params


@partial(jax.jit, static_argnums=0)
def parallel(plan: Plan, params: Params, xs: Array, h0: Array, h_r: Any, marks: Marks) -> tuple[Array, Array]:
    """xs [T, B, D], h0 and h_r [B, H] -> hs [T, B, H], h_last [B, H], for a cell that is ``linear``."""
    T = xs.shape[0]
    if T == 0:
        return jnp.zeros((0, *h0.shape), h0.dtype), h0
    inputs = project(params, xs, plan.product)._replace(k=marks.k)
    zeros = jnp.zeros((T, *h0.shape), h0.dtype)
    B, gates = advance(arrange(params, plan.cell), zeros, inputs, plan.cell, plan.product)  # of a state of zeros, u*c
    A = 1 - share(gates.f, marks.k, plan.cell)
    if marks.reset is not None:  # h_r enters the step, whatever came before
        B, A = jnp.where(marks.reset, A * h_r[None] + B, B), jnp.where(marks.reset, 0, A)

    def after(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        (A_1, B_1), (A_2, B_2) = first, second
        return A_1 * A_2, A_2 * B_1 + B_2

    A, B = lax.associative_scan(after, (A, B), reverse=plan.reverse)
    hs = A * jnp.broadcast_to(h0, A.shape) + B
    return hs, hs[0 if plan.reverse else -1]
