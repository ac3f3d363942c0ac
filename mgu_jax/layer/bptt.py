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
direction. "All at once" is meant for a segment of steps (``segments.py``), short enough to stay in a processor's cache
and long enough to make products of many rows; the segments follow each other, and what they give to dparams adds up.

x and the weights are kept for the backward pass anyway. What is kept besides is the user's choice:

    save="gates"     hs, f and c of all steps
    save="states"    hs, from which (1) and (2) give the gates again, all steps of a segment at once
    save="segments"  the state that enters each segment, from which (12) gives the rest of the segment again

With ``reverse`` the order of time is turned in both loops, and "the state before" stands at t + 1. Where a step is
marked as a reset, a state h_r enters it in the place of h_{t-1}, so

    (15)  dh_{t-1} = 0, and the dh of step t is added to dh_r, the gradient of h_r.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values

from mgu_jax.layer import segments
from mgu_jax.layer.cell import Gates, Inputs, Loop, advance, arrange, collect, project, retreat, turned
from mgu_jax.layer.family import MGU, Cell
from mgu_jax.layer.params import Params
from mgu_jax.layer.products import Products


@dataclass(frozen=True)
class Plan:
    """What is static about a run over time."""

    cell: Cell = MGU
    reverse: bool = False
    product: Products = Products()
    save: str = "gates"
    segment: int | None = None  # steps; None picks


class Marks(NamedTuple):
    """What is special about steps and units; none of it has a gradient, and ``None`` is nothing special."""

    k: Any = None  # [T, B, H], or 1 for B or H: how much of the update happens (padding: 0; zoneout)
    reset: Any = None  # bool [T, B, 1]: h_r enters this step
    m: Any = None  # [B, H]: mask of what the products see of the state, the same at all steps


class Saved(NamedTuple):
    """What the forward pass keeps of a segment of K steps."""

    start: Array  # [B, H], the state that entered the segment
    hs: Any = None  # [K, B, H]
    gates: Any = None  # ``Gates`` of [K, B, H]


def entering(h: Array, h_r: Any, reset: Any) -> Array:
    """The state that enters a step, or those that enter all steps."""
    return h if reset is None else jnp.where(reset, jnp.broadcast_to(h_r, h.shape), h)


# jit stands inside of custom_vjp, so that calls and gradients outside of any jit compile once and not at every call.
_compiled = partial(jax.jit, static_argnums=0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
@_compiled
def bptt(plan: Plan, params: Params, xs: Array, h0: Array, h_r: Any, marks: Marks) -> tuple[Array, Array]:
    """xs [T, B, D], h0 [B, H], h_r [B, H] (``None`` without resets) -> hs [T, B, H], h_last [B, H]."""
    return _run(plan, params, xs, h0, h_r, marks, ())[:2]


def _run(
    plan: Plan, params: Params, xs: Array, h0: Array, h_r: Any, marks: Marks, save: tuple[str, ...]
) -> tuple[Array, Array, list[Saved]]:
    loop = arrange(params, plan.cell, marks.m)

    def segment(h: Array, rows: Any) -> tuple[Array, tuple[Array, Saved]]:
        last, hs, gates = _steps(plan, loop, h_r, h, *rows)
        return last, (hs, Saved(h, hs if "states" in save else None, gates if "gates" in save else None))

    h_last, outputs = segments.over(segment, h0, _segments(plan, (xs, marks.k, marks.reset), h0), plan.reverse)
    hs, saved = zip(*outputs, strict=True)
    return segments.join(list(hs), plan.reverse), h_last, list(saved)


def _segments(plan: Plan, rows: Any, h0: Array) -> list[Any]:
    steps = jax.tree.leaves(rows)[0].shape[0]
    length = plan.segment or segments.length(
        plan.save, steps, h0.size * h0.dtype.itemsize, jax.default_backend() == "cpu"
    )
    return segments.cut(rows, length, plan.reverse)


def _steps(plan: Plan, loop: Loop, h_r: Any, h: Array, xs: Array, k: Any, reset: Any) -> tuple[Array, Array, Gates]:
    """The steps of a segment that h enters: the last state, hs and the gates."""
    inputs = project(loop.params, xs, plan.product)._replace(k=k)

    def body(h: Array, at: tuple[Inputs, Any]) -> tuple[Array, tuple[Array, Gates]]:
        a, reset = at
        h, gates = advance(loop, entering(h, h_r, reset), a, plan.cell, plan.product)  # (12)
        return h, (h, gates)

    last, (hs, gates) = lax.scan(body, h, (inputs, reset), reverse=plan.reverse)
    return last, hs, gates


@_compiled
def _forward(plan: Plan, params: Params, xs: Array, h0: Array, h_r: Any, marks: Marks) -> Any:
    save = {"gates": ("states", "gates"), "states": ("states",), "segments": ()}[plan.save]
    hs, h_last, saved = _run(plan, params, xs, h0, h_r, marks, save)
    return (hs, h_last), (params, xs, h0, h_r, marks, saved)


@_compiled
def _backward(plan: Plan, residuals: Any, dhs: Any, dh_last: Any) -> tuple[Params, Array, Array, Any, None]:
    """``None`` for a cotangent is zero."""
    params, xs, h0, h_r, marks, saved = residuals
    loop = turned(arrange(params, plan.cell, marks.m))

    def body(carry: tuple[Array, Any], at: tuple[Any, Array, Gates, Any, Any]) -> Any:
        dh, dh_r = carry
        dh_t, h, gates, k, reset = at
        g = dh if dh_t is None else dh_t + dh
        dh, dz_f, dz_h = retreat(loop, h, gates, k, g, plan.cell, plan.product)  # (13)
        if reset is not None:  # (15)
            dh_r, dh = dh_r + jnp.where(reset, dh, 0), jnp.where(reset, 0, dh)
        return (dh, dh_r), (dz_f, dz_h)

    def segment(carry: Any, rows: Any) -> tuple[Any, Array]:
        dh, dh_r, dparams = carry
        (xs, k, reset, dhs), (start, hs, gates) = rows
        if hs is None:
            _, hs, gates = _steps(plan, loop, h_r, start, xs, k, reset)
        before = entering(_shifted(hs, start, plan.reverse), h_r, reset)
        if gates is None:
            _, gates = advance(loop, before, project(params, xs, plan.product), plan.cell, plan.product)
        (dh, dh_r), (dz_f, dz_h) = lax.scan(body, (dh, dh_r), (dhs, before, gates, k, reset), reverse=not plan.reverse)
        part, dxs = collect(loop, xs, before, gates, dz_f, dz_h, plan.cell, plan.product)  # (14)
        return (dh, dh_r, jax.tree.map(jnp.add, dparams, part)), dxs

    zeros = jnp.zeros_like(h0)
    carry = (zeros if dh_last is None else dh_last, None if marks.reset is None else zeros)
    rows = _segments(plan, (xs, marks.k, marks.reset, dhs), h0)
    stacks = list(zip(rows, saved, strict=True))[::-1]
    carry, dxs = segments.over(segment, (*carry, jax.tree.map(jnp.zeros_like, params)), stacks, not plan.reverse)
    dh, dh_r, dparams = carry
    return dparams, segments.join(dxs, not plan.reverse), dh, dh_r, None


def _shifted(hs: Array, start: Array, reverse: bool) -> Array:
    """The state before each step, [K, B, H]. Cut to K, since there is none when K = 0."""
    first = start[None]
    return (jnp.concatenate([hs[1:], first]) if reverse else jnp.concatenate([first, hs[:-1]]))[: hs.shape[0]]


def _rule_forward(plan: Plan, *arguments: Any) -> Any:
    return _forward(plan, *custom_vjp_primal_tree_values(arguments))


def _rule_backward(plan: Plan, residuals: Any, cotangents: tuple[Any, Any]) -> Any:
    # An output that the loss does not use has a cotangent of zeros, which need no memory.
    return _backward(plan, residuals, *(None if isinstance(c, SymbolicZero) else c for c in cotangents))


bptt.defvjp(_rule_forward, _rule_backward, symbolic_zeros=True)
