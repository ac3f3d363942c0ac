"""All steps of a segment at once, by Newton's method, or one after another where that does not converge.

The states of a segment are the zero of h_t - f(h_{t-1}, x_t) for all t together. Newton's method guesses all of them,
and then corrects all of them at once (DEER: Lim et al. 2023, arXiv 2309.12252):

    (20)  r_t = f(h_{t-1}, x_t) - h_t                the residual
    (21)  v_t = J_t v_{t-1} + r_t,    v_0 = 0        the correction, with the Jacobian J_t = dh'/dh at h_{t-1}
    (22)  h_t <- h_t + v_t

(21) is an affine recurrence, which ``affine`` solves without a loop. The correction estimates, to first order, how far
the guess is from the states that the loop computes, however much the layer amplifies a small residual. So the states
are accepted if the last correction, before it was added, was within ``TOLERANCE`` of the largest state of its sample;
Newton's method then leaves an error of the order of its square. If the corrections stay larger or are not finite, the
loop of ``bptt`` computes the segment instead. With enough processors, the method takes a time of order (log T)^2 where
neighbouring states come closer (a negative largest Lyapunov exponent), and does not pay where they part (Gonzalez et
al. 2025, arXiv 2508.16817).

Backward there is nothing to iterate: the cotangents of the states obey an affine recurrence already,

    (23)  dh'_{t-1} = dhs_{t-1} + J_t^T dh'_t                    (13) with (8)

Its solution is put into the equations of the loop, and accepted if it satisfies them to rounding. If not, the loop
computes it instead.

J_t is the diagonal of length H for members whose units do not see each other (``Cell.elementwise``), and H x H for the
others. Both come from ``retreat``, given unit vectors as dh'.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from mgu_jax.layer import mesh, segments
from mgu_jax.layer.affine import composed, times
from mgu_jax.layer.bptt import (
    Loops,
    Marks,
    Plan,
    backward_loop,
    forward_loop,
    shifted,
    state_before,
    with_derivative_of,
)
from mgu_jax.layer.cell import (
    Gates,
    InputTerms,
    StepWeights,
    add,
    advance,
    prepare,
    project,
    retreat,
    with_transposes,
)
from mgu_jax.layer.family import Cell
from mgu_jax.layer.params import Params
from mgu_jax.layer.products import Products, like

ITERATIONS = 16  # at most, for a segment
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}  # of a correction, relative to the largest state of the sample
LARGEST = 32  # units of a member whose Jacobians are matrices
_ROUNDING = 100  # relative errors of a single operation that a step of the backward pass may have
_MOST_BYTES = 2**28  # of the Jacobians of a segment, where they are matrices


class Convergence(NamedTuple):
    """How Newton's method ended in each segment of a sequence; arrays [number of segments].

    Attributes:
        iterations: how often all states of the segment were corrected.
        correction: the last correction, relative to the largest state of its sample; the largest of any step and
            sample. It estimates the distance of the states before it from those of the loop.
        residual: f(h_{t-1}, x_t) - h_t after the last correction, relative in the same way.
        fell_back: whether the loop computed the segment instead.
    """

    iterations: Array
    correction: Array
    residual: Array
    fell_back: Array


def refusal(cell: Cell, H: int, dtype: Any, forward: bool) -> str | None:
    """Why ``LOOPS``, or ``LOOP_FORWARD`` if not ``forward``, cannot serve, as the end of a sentence; or ``None``."""
    dtype = jnp.dtype(dtype)
    if dtype.name not in TOLERANCE:
        return f"needs float32 or float64 parameters; these are {dtype.name}"
    if cell.elementwise:
        return None
    if not forward:
        return f"needs a diagonal recurrence without layer normalisation, such as DIAGONAL_MGU's; got {cell}"
    if H > LARGEST:
        return (
            f"needs a diagonal recurrence without layer normalisation, such as DIAGONAL_MGU's, or at most {LARGEST} "
            f"hidden units; got {H}, for which each step of each sample would take a Jacobian of "
            f"{H * H * dtype.itemsize:,} bytes and {8 * H**3:,} floating-point operations in every iteration"
        )
    return None


@custom_vmap
def _everywhere(holds: Array) -> Array:
    """Whether something holds for all members of a vmap. A condition on it stays a condition under ``vmap``."""
    return holds


@_everywhere.def_vmap
def _(size: int, batched: list[bool], holds: Array) -> tuple[Array, bool]:
    return _everywhere(jnp.all(holds, 0) if batched[0] else holds), False


def jacobians(
    weights: StepWeights, h: Array, gates: Gates, alpha: Array | None, reset: Array | None, plan: Plan
) -> Array:
    """J_t of all steps: [S, B, H] where it is diagonal, else [S, B, H, H]; the first H is that of the new state.

    It is zero at a reset, since the step then does not start from the state before.
    """

    def dh(dh_next: Array) -> Array:
        return retreat(weights, h, gates, alpha, jnp.broadcast_to(dh_next, h.shape), plan.cell, plan.product)[0]

    if plan.cell.elementwise:
        J = dh(jnp.ones((), h.dtype))
        return J if reset is None else jnp.where(reset, 0, J)
    J = jnp.moveaxis(jax.vmap(dh)(jnp.eye(h.shape[-1], dtype=h.dtype)), 0, -2)
    return J if reset is None else jnp.where(reset[..., None], 0, J)


def solve(
    plan: Plan,
    weights: StepWeights,
    inputs: InputTerms,
    h: Array,
    h_reset: Array | None,
    reset: Array | None,
    guess: Array | None = None,
) -> tuple[Array, Gates, Convergence]:
    """hs and the gates of S steps, as ``forward_loop`` gives them, by Newton's method alone.

    ``guess`` [S, B, H] is where it starts; ``None`` takes f(0, x_t).
    """
    plan, weights = _exact(plan), with_transposes(weights)
    limit = _limit(plan.cell, h, h_reset)

    def before(hs: Array) -> Array:
        return state_before(shifted(hs, h, plan.reverse), h_reset, reset)

    def at(hs: Array) -> tuple[Array, Gates]:
        hs_next, gates = advance(weights, before(hs), inputs, plan.cell, plan.product)
        return hs_next - hs, gates  # (20)

    def iterate(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        # The residual comes with the carry: what XLA fuses with (21), it may compute twice and round differently.
        hs, r, gates, count, _ = carry
        J = jacobians(weights, before(hs), gates, inputs.alpha, reset, plan)
        _, v = composed(J, r, plan.reverse, plan.product.precision)  # (21)
        hs = hs + v  # (22)
        if limit is not None:
            hs = jnp.clip(hs, -like(limit, hs), like(limit, hs))
        return hs, *at(hs), count + 1, _relative(v, hs)

    def unfinished(carry: tuple[Any, ...]) -> Array:
        *_, count, correction = carry
        going = (correction > TOLERANCE[str(h.dtype)]) & (correction < jnp.inf) & (count < ITERATIONS)
        return ~_everywhere(~going)

    if guess is None:
        guess, _ = advance(weights, jnp.zeros_like(inputs.xW_h), inputs, plan.cell, plan.product)
    none = jnp.zeros((), jnp.int32), jnp.full((), jnp.finfo(h.dtype).max, h.dtype)
    carry, *_ = mesh.vary_alike(((guess, *at(guess), *none), weights, inputs, h, h_reset, reset))
    hs, r, gates, count, correction = lax.while_loop(unfinished, iterate, carry)
    residual = _relative(r, hs)
    good = (correction <= TOLERANCE[str(h.dtype)]) & (residual < jnp.inf)
    return hs + r, gates, Convergence(count, correction, residual, ~_everywhere(good))


def _exact(plan: Plan) -> Plan:
    """The plan with products as exact as the dtype where the user asks for no other: on a GPU, TF32 is not enough."""
    product = plan.product
    if product.precision in (None, "default", lax.Precision.DEFAULT):
        product = Products("highest", product.compute_dtype)
    return Plan(plan.cell, plan.reverse, product)


def _limit(cell: Cell, h: Array, h_reset: Array | None) -> Array | None:
    """The largest size [B, H] that a state can have, ``None`` if the cell alone sets no bound."""
    if cell.bound is None:
        return None
    return jnp.maximum(jnp.maximum(abs(h), cell.bound), abs(h if h_reset is None else h_reset))


def _relative(v: Array, hs: Array) -> Array:
    """The largest size of v [S, B, H] relative to the largest state of its sample, hs [S, B, H]; NaN if any is NaN."""
    size, largest = jnp.max(abs(v), (0, 2)), jnp.max(abs(hs), (0, 2))
    return jnp.max(jnp.where(size == 0, 0, size / largest), initial=0)


def attempt(
    plan: Plan, weights: StepWeights, inputs: InputTerms, h: Array, h_reset: Array | None, reset: Array | None
) -> tuple[tuple[Array, Array, Gates], Convergence]:
    """What ``forward_loop`` returns, by Newton's method or else by the loop, and how Newton's method ended."""
    arguments = weights, inputs, h, h_reset, reset
    if inputs.xW_h.shape[0] == 0:
        nothing = jnp.zeros((), h.dtype)
        return forward_loop(plan, *arguments), Convergence(jnp.zeros((), jnp.int32), nothing, nothing, nothing > 0)
    hs, gates, found = solve(plan, *arguments)

    def kept(*_: Any) -> tuple[Array, Array, Gates]:
        return hs[0 if plan.reverse else -1], hs, gates

    return lax.cond(found.fell_back, partial(forward_loop, plan), kept, *arguments), found


@partial(jax.jit, static_argnums=0)
def report(plan: Plan, params: Params, xs: Array, h0: Array, h_reset: Array | None, marks: Marks) -> Convergence:
    """How Newton's method ends in each segment, in the order of time."""
    weights = prepare(params, plan.cell, marks.mask)

    def segment(h: Array, rows: tuple[Array, Array | None, Array | None]) -> tuple[Array, Convergence]:
        xs, alpha, reset = rows
        (h_last, *_), found = attempt(plan, weights, project(params, xs, alpha, plan.product), h, h_reset, reset)
        return h_last, Convergence(*(a[None] for a in found))

    stacks = segments.cut((xs, marks.alpha, marks.reset), plan.segment or 1, plan.reverse)
    return segments.join(segments.over(segment, h0, stacks, plan.reverse)[1], plan.reverse)


def _backward(
    plan: Plan, weights: StepWeights, carry: tuple[Array, Array | None], rows: Any
) -> tuple[tuple[Array, Array | None], tuple[Array, Array]]:
    """As ``backward_loop``."""
    (dh, dh_reset), (dhs, h, gates, alpha, reset) = carry, rows
    if h.shape[0] == 0:
        return backward_loop(plan, weights, carry, rows)
    exact = _exact(plan)
    precision = exact.product.precision
    J = jacobians(weights, h, gates, alpha, reset, exact)
    if J.ndim == 4:
        J = jnp.swapaxes(J, -1, -2)
    one = jnp.ones_like(J[0]) if J.ndim == 3 else jnp.broadcast_to(jnp.eye(h.shape[-1], dtype=h.dtype), J[0].shape)
    b = jnp.zeros_like(h) if dhs is None else dhs
    A, b = composed(shifted(J, one, not plan.reverse), b, not plan.reverse, precision)  # (23)
    dh_next = times(A, jnp.broadcast_to(dh, h.shape), precision) + b
    dh_before, dz_f, dz_h = retreat(weights, h, gates, alpha, dh_next, plan.cell, exact.product)
    through = dh_before if reset is None else jnp.where(reset, 0, dh_before)  # (15)
    if dh_reset is not None:
        dh_reset = add(dh_reset, jnp.sum(dh_before - through, 0))  # (15)
    # In (13), as the loop computes it.
    dh_after = shifted(through, dh, not plan.reverse)
    error = jnp.max(abs(add(dhs, dh_after) - dh_next), -1)
    size = jnp.max(jnp.maximum(abs(dh_after), abs(dh_next)), -1)
    known = jnp.finfo(h.dtype)
    good = _everywhere(jnp.all(error <= _ROUNDING * float(known.eps) * size + float(known.tiny)))
    found = (through[-1 if plan.reverse else 0], dh_reset), (dz_f, dz_h)
    return lax.cond(good, lambda *_: found, partial(backward_loop, plan), weights, carry, rows)


def length(plan: Plan, xs: Array, h0: Array) -> int:
    """The number of steps in a segment, where the user does not choose it."""
    T, (B, H), size = xs.shape[0], h0.shape, h0.dtype.itemsize
    wide = 1 if plan.cell.elementwise else H
    most = segments.length(plan.save, T, B * H * wide * size, jax.default_backend() == "cpu")
    return most if wide == 1 else max(1, min(most, _MOST_BYTES // max(1, B * H * wide * size)))


BACKWARD = with_derivative_of(backward_loop, _backward)
LOOPS = Loops(with_derivative_of(forward_loop, lambda *arguments: attempt(*arguments)[0]), BACKWARD)
LOOP_FORWARD = Loops(forward_loop, BACKWARD)
