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

With ``reverse`` the order of time is turned in both loops, and "the state before" stands at t + 1.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from mgu_jax.cell import MGU, Cell, Gates, Inputs, advance, collect, project, retreat
from mgu_jax.params import Params
from mgu_jax.products import Products


@dataclass(frozen=True)
class Plan:
    """What is static about a run over time."""

    cell: Cell = MGU
    reverse: bool = False
    product: Products = Products()


# jit stands inside of custom_vjp, so that calls and gradients outside of any jit compile once and not at every call.
_compiled = partial(jax.jit, static_argnums=0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
@_compiled
def bptt(plan: Plan, params: Params, xs: Array, h0: Array) -> tuple[Array, Array]:
    """xs [T, B, D], h0 [B, H] -> hs [T, B, H], h_last [B, H]."""

    def body(h: Array, a: Inputs) -> tuple[Array, Array]:
        h, _ = advance(params, h, a, plan.cell, plan.product)
        return h, h

    h_last, hs = lax.scan(body, h0, project(params, xs, plan.product), reverse=plan.reverse)
    return hs, h_last


@_compiled
def _forward(plan: Plan, params: Params, xs: Array, h0: Array) -> Any:
    def body(h: Array, a: Inputs) -> Any:
        h, gates = advance(params, h, a, plan.cell, plan.product)
        return h, (h, gates)

    h_last, (hs, gates) = lax.scan(body, h0, project(params, xs, plan.product), reverse=plan.reverse)  # (12)
    return (hs, h_last), (params, xs, h0, hs, gates)


@_compiled
def _backward(plan: Plan, residuals: Any, cotangents: tuple[Array, Array]) -> tuple[Params, Array, Array]:
    params, xs, h0, hs, gates = residuals
    dhs, dh_last = cotangents
    before = _states_before(hs, h0, plan.reverse)

    def body(dh: Array, step: tuple[Array, Array, Gates]) -> Any:
        dh_t, h, gates = step
        dh, dz_f, dz_h = retreat(params, h, gates, dh_t + dh, plan.cell, plan.product)  # (13)
        return dh, (dz_f, dz_h)

    dh0, (dz_f, dz_h) = lax.scan(body, dh_last, (dhs, before, gates), reverse=not plan.reverse)
    dparams, dxs = collect(params, xs, before, gates, dz_f, dz_h, plan.cell, plan.product)  # (14)
    return dparams, dxs, dh0


bptt.defvjp(_forward, _backward)


def _states_before(hs: Array, h0: Array, reverse: bool) -> Array:
    """The state that entered each step, [T, B, H]. Cut to T, since there is none when T = 0."""
    first = h0[None]
    return (jnp.concatenate([hs[1:], first]) if reverse else jnp.concatenate([first, hs[:-1]]))[: len(hs)]
