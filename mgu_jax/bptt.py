"""Backpropagation through time, by hand.

The forward pass runs the cell over time from h_0, with t = 1 .. T:

    (12)  h_t = step(params, h_{t-1}, x_t)

and gives hs = (h_1 .. h_T) and h_last = h_T. Let dhs_t and dh_last be the cotangents of these outputs. The state h_t
reaches the loss by three ways: as an output, through the next step, and, if it is the last, as h_last. So the cotangent
that arrives at the end of step t is

    (13)  g_t = dhs_t + dh_t          dh_T = dh_last,    dh_{t-1} = the dh of step t, by (5) to (8) with g = g_t

and dh_0 is the gradient of h0. The loop over (13), from the last step to the first, is all that has to run in order. It
leaves dz_f and dz_h of every step behind, from which

    (14)  dparams, dxs = (9) to (11) over the rows of all steps and all samples at once

takes every weight gradient as one product over T*B rows instead of T products over B rows and T additions, and likewise
the input products of the forward pass stand before its loop. What is left inside is two H x H products a step in each
direction. The forward pass keeps hs, f and c of all steps; x and the weights are kept anyway.

With ``reverse`` the order of time is turned in both loops, and "the state before" stands at t + 1. Where a step is
marked as a reset, h0 enters it in the place of h_{t-1}, so

    (15)  dh_{t-1} = 0, and the dh of step t is added to the gradient of h0.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mgu_jax.cell import Gates, Inputs, advance, arrange, collect, project, retreat
from mgu_jax.family import MGU, Cell
from mgu_jax.params import Params
from mgu_jax.products import Products


@dataclass(frozen=True)
class Plan:
    """What is static about a run over time."""

    cell: Cell = MGU
    reverse: bool = False
    product: Products = Products()


class Marks(NamedTuple):
    """What is special about steps and units; none of it has a gradient, and ``None`` is nothing special."""

    k: Any = None  # [T, B, H], or 1 for B or H: how much of the update happens (padding: 0; zoneout)
    reset: Any = None  # bool [T, B, 1]: h0 enters this step
    m: Any = None  # [B, H]: mask of what the products see of the state, the same at all steps


def entering(h: Array, h0: Array, reset: Any) -> Array:
    """The state that enters a step, or those that enter all steps."""
    return h if reset is None else jnp.where(reset, jnp.broadcast_to(h0, h.shape), h)


# jit stands inside of custom_vjp, so that calls and gradients outside of any jit compile once and not at every call.
_compiled = partial(jax.jit, static_argnums=0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
@_compiled
def bptt(plan: Plan, params: Params, xs: Array, h0: Array, marks: Marks) -> tuple[Array, Array]:
    """xs [T, B, D], h0 [B, H] -> hs [T, B, H], h_last [B, H]."""
    hs, h_last, _ = _run(plan, params, xs, h0, marks, keep=False)
    return hs, h_last


def _run(plan: Plan, params: Params, xs: Array, h0: Array, marks: Marks, keep: bool) -> tuple[Array, Array, Any]:
    loop = arrange(params, plan.cell, marks.m)
    inputs = project(params, xs, plan.product)._replace(k=marks.k)

    def body(h: Array, at: tuple[Inputs, Any]) -> Any:
        a, reset = at
        h, gates = advance(loop, entering(h, h0, reset), a, plan.cell, plan.product)  # (12)
        return h, (h, gates if keep else None)

    h_last, (hs, gates) = lax.scan(body, h0, (inputs, marks.reset), reverse=plan.reverse)
    return hs, h_last, gates


@_compiled
def _forward(plan: Plan, params: Params, xs: Array, h0: Array, marks: Marks) -> Any:
    hs, h_last, gates = _run(plan, params, xs, h0, marks, keep=True)
    return (hs, h_last), (params, xs, h0, marks, hs, gates)


@_compiled
def _backward(plan: Plan, residuals: Any, cotangents: tuple[Array, Array]) -> tuple[Params, Array, Array, None]:
    params, xs, h0, marks, hs, gates = residuals
    dhs, dh_last = cotangents
    loop = arrange(params, plan.cell, marks.m)
    before = entering(_shifted(hs, h0, plan.reverse), h0, marks.reset)

    def body(carry: tuple[Array, Any], at: tuple[Array, Array, Gates, Any, Any]) -> Any:
        dh, dh0 = carry
        dh_t, h, gates, k, reset = at
        dh, dz_f, dz_h = retreat(loop, h, gates, k, dh_t + dh, plan.cell, plan.product)  # (13)
        if reset is not None:  # (15)
            dh0, dh = dh0 + jnp.where(reset, dh, 0), jnp.where(reset, 0, dh)
        return (dh, dh0), (dz_f, dz_h)

    start = (dh_last, None if marks.reset is None else jnp.zeros_like(h0))
    rows = (dhs, before, gates, marks.k, marks.reset)
    (dh, dh0), (dz_f, dz_h) = lax.scan(body, start, rows, reverse=not plan.reverse)
    dparams, dxs = collect(loop, xs, before, gates, dz_f, dz_h, plan.cell, plan.product)  # (14)
    return dparams, dxs, dh if dh0 is None else dh + dh0, None


bptt.defvjp(_forward, _backward)


def _shifted(hs: Array, h0: Array, reverse: bool) -> Array:
    """The state before each step, [T, B, H]. Cut to T, since there is none when T = 0."""
    first = h0[None]
    return (jnp.concatenate([hs[1:], first]) if reverse else jnp.concatenate([first, hs[:-1]]))[: len(hs)]
