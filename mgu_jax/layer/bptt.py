"""Backpropagation through time, derived by hand.

The forward pass runs the cell over time from h_0, for t = 1 .. T:

    (12)  h_t = step(params, h_{t-1}, x_t)

and gives hs = (h_1 .. h_T) and h_last = h_T. Its backward pass is given dhs and dh_last, the cotangents of these two.
The state h_t affects the loss in three ways: as an output, through the next step, and, if it is the last, as h_last.
So the cotangent dh' of the new state of step t is

    (13)  dh'_t = dhs_t + dh_t          dh_T = dh_last,    dh_{t-1} = dh of step t, by (4) to (8) from dh' = dh'_t

and dh_0 is the gradient of h0. Only this loop, from the last step to the first, has to run in order. It gives dz_f and
dz_h of every step, and then

    (14)  dparams, dxs = (9) to (11) for the rows of all steps and all samples at once

computes every weight gradient as one product over T*B rows instead of T products over B rows and T additions. In the
same way the input products of the forward pass are computed before its loop. What is left inside is two H x H products
per step in each direction. "All at once" means a segment of steps (``segments.py``), short enough to stay in a
processor's cache and long enough for products of many rows; one segment runs after another, and their shares of
dparams are added up.

x and the weights are kept for the backward pass in any case. What else is kept is the user's choice:

    save="gates"     hs, f and c of all steps
    save="states"    hs, from which (1) and (2) give the gates again, for all steps of a segment at once
    save="segments"  the state before each segment, from which (12) gives the states and gates of the segment again

With ``reverse`` both loops run in the opposite order of time, and the state before step t is h_{t+1}. At a step that is
marked as a reset, the state h_reset takes the place of h_{t-1}, so

    (15)  dh_{t-1} = 0, and the dh of step t is added to dh_reset, the gradient of h_reset.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values

from mgu_jax.layer import segments
from mgu_jax.layer.cell import (
    Gates,
    InputTerms,
    StepWeights,
    add,
    advance,
    prepare,
    project,
    retreat,
    weight_gradients,
    with_transposes,
)
from mgu_jax.layer.family import MGU, Cell
from mgu_jax.layer.params import Params
from mgu_jax.layer.products import Products, wide


class Loops(NamedTuple):
    """The two loops over the steps of a segment, which a kernel may take over; see ``forward_loop`` and so on."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


class Segments(NamedTuple):
    """All that is done for the steps of a segment, which a kernel may take over; see ``forward_segment`` and so on."""

    forward: Callable[..., Any]
    states: Callable[..., Any]
    backward: Callable[..., Any]


def with_derivative_of(definition: Callable[..., Any], loop: Callable[..., Any]) -> Callable[..., Any]:
    """``loop(plan, *arguments)``, whose derivative, which second derivatives need, is that of ``definition``."""

    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    def run(plan: Any, *arguments: Any) -> Any:
        return loop(plan, *arguments)

    @run.defjvp
    def _(plan: Any, primals: Any, tangents: Any) -> Any:
        _, derivative = jax.jvp(partial(definition, plan), primals, tangents)
        return run(plan, *primals), derivative

    return run


@dataclass(frozen=True)
class Plan:
    """The static part of a run over time."""

    cell: Cell = MGU
    reverse: bool = False
    product: Products = Products()
    save: str = "gates"
    segment: int | None = None  # steps; None chooses
    loops: Loops | None = None  # None takes those of this file
    segments: Segments | None = None  # "


class Marks(NamedTuple):
    """What is special about single steps and units; none of it has a gradient. ``None`` marks nothing."""

    alpha: Array | None = None  # [T, B, H], or 1 for B or H: how much of the update takes place (padding, zoneout)
    reset: Array | None = None  # bool [T, B, 1]: the step starts from h_reset
    mask: Array | None = None  # [B, H]: of recurrent dropout, the same at all steps


class Saved(NamedTuple):
    """What the forward pass keeps of a segment of S steps; ``None`` is computed again."""

    start: Array  # [B, H], the state before the segment
    hs: Array | None = None  # [S, B, H]
    gates: Gates | None = None  # of [S, B, H]


def assert_shapes(xs: Array, h0: Array, h_reset: Array | None, marks: Marks) -> None:
    """Assert what every implementation relies on: xs [T, B, D], h0 and h_reset [B, H], and the shapes of ``Marks``."""
    (T, B, _), (_, H) = xs.shape, h0.shape
    chex.assert_shape(h0, (B, H))
    for array, shape in ((h_reset, (B, H)), (marks.reset, (T, B, 1)), (marks.mask, (B, H))):
        if array is not None:
            chex.assert_shape(array, shape)
    if marks.alpha is not None:
        chex.assert_shape(marks.alpha, (T, {1, B}, {1, H}))
    chex.assert_equal(h_reset is None, marks.reset is None)


def state_before(h: Array, h_reset: Array | None, reset: Array | None) -> Array:
    """The state from which a step starts: h, or h_reset at a reset. One step, or all steps with a leading axis."""
    if h_reset is None or reset is None:
        return h
    return jnp.where(reset, jnp.broadcast_to(h_reset, h.shape), h)


# What the forward pass keeps: params, xs, h0, h_reset, marks, and one ``Saved`` for each stack of segments.
Kept = tuple[Params, Array, Array, Array | None, Marks, list[Saved]]

# jit is inside of custom_vjp, so that calls and gradients outside of any jit compile once instead of at every call.
_compiled = partial(jax.jit, static_argnums=0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
@_compiled
def bptt(plan: Plan, params: Params, xs: Array, h0: Array, h_reset: Array | None, marks: Marks) -> tuple[Array, Array]:
    """hs [T, B, H] and h_last [B, H] from xs [T, B, D], h0 [B, H] and h_reset [B, H] (``None`` without resets)."""
    return _forward_segments(plan, params, xs, h0, h_reset, marks, ())[:2]


def _forward_segments(
    plan: Plan,
    params: Params,
    xs: Array,
    h0: Array,
    h_reset: Array | None,
    marks: Marks,
    save: tuple[str, ...],
) -> tuple[Array, Array, list[Saved]]:
    """hs, h_last and, for each stack of segments, what ``save`` names."""
    assert_shapes(xs, h0, h_reset, marks)
    weights = prepare(params, plan.cell, marks.mask)
    forward, states, _ = plan.segments or (forward_segment, states_segment, None)

    def run_and_save(h: Array, rows: tuple[Array, Array | None, Array | None]) -> tuple[Array, tuple[Array, Saved]]:
        if "gates" in save:
            h_last, hs, gates = forward(plan, weights, h_reset, h, *rows)
        else:
            (h_last, hs), gates = states(plan, weights, h_reset, h, *rows), None
        return h_last, (hs, Saved(h, hs if "states" in save else None, gates))

    stacks = _cut(plan, (xs, marks.alpha, marks.reset), h0)
    h_last, outputs = segments.over(run_and_save, h0, stacks, plan.reverse)
    hs, saved = zip(*outputs, strict=True)
    return segments.join(list(hs), plan.reverse), h_last, list(saved)


def forward_segment(
    plan: Plan,
    weights: StepWeights,
    h_reset: Array | None,
    h: Array,
    xs: Array,
    alpha: Array | None,
    reset: Array | None,
) -> tuple[Array, Array, Gates]:
    """The last state, hs and the gates of the steps xs [S, B, D] that follow the state h [B, H]."""
    inputs = project(weights.params, xs, alpha, plan.product)
    loop = plan.loops.forward if plan.loops else forward_loop
    return loop(plan, weights, inputs, h, h_reset, reset)


def states_segment(plan: Plan, *arguments: Any) -> tuple[Array, Array]:
    """The last state and hs, as ``forward_segment`` gives them, for a caller that needs no gates."""
    return forward_segment(plan, *arguments)[:2]


def forward_loop(
    plan: Plan, weights: StepWeights, inputs: InputTerms, h: Array, h_reset: Array | None, reset: Array | None
) -> tuple[Array, Array, Gates]:
    """The last state, hs and the gates of S steps with these inputs, [S, B, H], that follow the state h [B, H]."""

    def forward_step(h: Array, rows: tuple[InputTerms, Array | None]) -> tuple[Array, tuple[Array, Gates]]:
        x, reset = rows
        h = state_before(h, h_reset, reset)
        h_next, gates = advance(weights, h, x, plan.cell, plan.product)  # (12)
        return h_next, (h_next, gates)

    h_last, (hs, gates) = lax.scan(forward_step, h, (inputs, reset), reverse=plan.reverse)
    return h_last, hs, gates


def backward_loop(
    plan: Plan, weights: StepWeights, carry: tuple[Array, Array | None], rows: Any
) -> tuple[tuple[Array, Array | None], tuple[Array, Array]]:
    """((dh, dh_reset), (dz_f, dz_h)): the cotangents at the start of a segment, and those of all its steps.

    The carry holds dh of the segment's last state, and dh_reset so far; rows are dhs, the states before the steps, the
    gates, alpha and the resets.
    """

    def backward_step(
        carry: tuple[Array, Array | None], rows: tuple[Array | None, Array, Gates, Array | None, Array | None]
    ) -> tuple[tuple[Array, Array | None], tuple[Array, Array]]:
        dh, dh_reset = carry
        dhs_t, h, gates, alpha, reset = rows
        dh_next = add(dhs_t, dh)  # (13)
        dh, dz_f, dz_h = retreat(weights, h, gates, alpha, dh_next, plan.cell, plan.product)
        if reset is not None:
            dh_reset = add(dh_reset, jnp.where(reset, dh, 0).astype(wide(dh)))  # (15)
            dh = jnp.where(reset, 0, dh)  # (15)
        return (dh, dh_reset), (dz_f, dz_h)

    return lax.scan(backward_step, carry, rows, reverse=not plan.reverse)


def backward_segment(
    plan: Plan,
    weights: StepWeights,
    h_reset: Array | None,
    carry: tuple[Array, Array | None],
    rows: tuple[Array, Array | None, Array | None, Array | None],
    saved: Saved,
) -> tuple[tuple[Array, Array | None], tuple[Params, Array]]:
    """((dh, dh_reset), (dparams, dxs)) of a segment: the cotangents at its start, of the weights and of its inputs.

    The carry is that of ``backward_loop``; rows are xs, alpha, the resets and dhs; all of ``saved`` is there.
    """
    xs, alpha, reset, dhs = rows
    start, hs, gates = saved
    assert hs is not None
    assert gates is not None
    h = state_before(shifted(hs, start, plan.reverse), h_reset, reset)
    loop = plan.loops.backward if plan.loops else backward_loop
    carry, (dz_f, dz_h) = loop(plan, weights, carry, (dhs, h, gates, alpha, reset))
    return carry, weight_gradients(weights, xs, h, gates, dz_f, dz_h, plan.cell, plan.product)  # (14)


def _cut(plan: Plan, rows: Any, h0: Array) -> list[Any]:
    """rows, a pytree of [T, ...], as stacks of segments."""
    steps = jax.tree.leaves(rows)[0].shape[0]
    # A segment has to stay in the cache, unless a kernel takes over all that is done for it.
    on_cpu = jax.default_backend() == "cpu" and plan.segments is None
    length = plan.segment or segments.length(plan.save, steps, h0.size * h0.dtype.itemsize, on_cpu)
    return segments.cut(rows, length, plan.reverse)


@_compiled
def _forward(
    plan: Plan, params: Params, xs: Array, h0: Array, h_reset: Array | None, marks: Marks
) -> tuple[tuple[Array, Array], Kept]:
    save = {"gates": ("states", "gates"), "states": ("states",), "segments": ()}[plan.save]
    hs, h_last, saved = _forward_segments(plan, params, xs, h0, h_reset, marks, save)
    return (hs, h_last), (params, xs, h0, h_reset, marks, saved)


@_compiled
def _backward(
    plan: Plan, kept: Kept, dhs: Array | None, dh_last: Array | None
) -> tuple[Params, Array, Array, Array | None, None]:
    """The cotangents of params, xs, h0, h_reset and marks; dhs or dh_last is ``None`` where it is zero."""
    params, xs, h0, h_reset, marks, saved = kept
    weights = with_transposes(prepare(params, plan.cell, marks.mask))

    def one_segment(
        carry: tuple[Array, Array | None, Params],
        rows: tuple[tuple[Array, Array | None, Array | None, Array | None], Saved],
    ) -> tuple[tuple[Array, Array | None, Params], Array]:
        dh, dh_reset, dparams = carry
        (xs, alpha, reset, dhs), (start, hs, gates) = rows
        if hs is None:
            forward = plan.segments.forward if plan.segments else forward_segment
            _, hs, gates = forward(plan, weights, h_reset, start, xs, alpha, reset)
        if gates is None:
            h = state_before(shifted(hs, start, plan.reverse), h_reset, reset)
            _, gates = advance(weights, h, project(params, xs, None, plan.product), plan.cell, plan.product)
        backward = plan.segments.backward if plan.segments else backward_segment
        saved = Saved(start, hs, gates)
        (dh, dh_reset), (part, dxs) = backward(plan, weights, h_reset, (dh, dh_reset), (xs, alpha, reset, dhs), saved)
        dparams = jax.tree.map(lambda total, part: total + part.astype(wide(part)), dparams, part)  # (14)
        return (dh, dh_reset, dparams), dxs

    def zeros(a: Array) -> Array:
        return jnp.zeros_like(a, wide(a))

    carry = (jnp.zeros_like(h0) if dh_last is None else dh_last, None if marks.reset is None else zeros(h0))
    rows = _cut(plan, (xs, marks.alpha, marks.reset, dhs), h0)
    stacks = list(zip(rows, saved, strict=True))[::-1]
    carry, dxs = segments.over(one_segment, (*carry, jax.tree.map(zeros, params)), stacks, not plan.reverse)
    dh, dh_reset, dparams = carry
    dparams = jax.tree.map(lambda total, a: total.astype(a.dtype), dparams, params)
    dh_reset = None if dh_reset is None else dh_reset.astype(h0.dtype)
    return dparams, segments.join(dxs, not plan.reverse), dh, dh_reset, None


def shifted(hs: Array, start: Array, reverse: bool) -> Array:
    """The state before each step, [S, B, H], where ``start`` comes before the first step to run."""
    S, first = hs.shape[0], start[None]
    return (jnp.concatenate([hs[1:], first]) if reverse else jnp.concatenate([first, hs[:-1]]))[:S]  # S may be 0


def _rule_forward(plan: Plan, *arguments: Any) -> tuple[tuple[Array, Array], Kept]:
    return _forward(plan, *custom_vjp_primal_tree_values(arguments))


def _rule_backward(
    plan: Plan, kept: Kept, cotangents: tuple[Array | SymbolicZero, Array | SymbolicZero]
) -> tuple[Params, Array, Array, Array | None, None]:
    # The cotangent of an output that the loss does not use is a symbolic zero, which needs no memory.
    return _backward(plan, kept, *(None if isinstance(c, SymbolicZero) else c for c in cotangents))


bptt.defvjp(_rule_forward, _rule_backward, symbolic_zeros=True)
