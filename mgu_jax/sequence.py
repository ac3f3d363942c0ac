"""Running a cell over time: the public ``scan``, which checks its arguments and calls an implementation.

``definition`` is what every implementation has to equal: one ``lax.scan`` over the steps, differentiated by JAX.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from mgu_jax import checks
from mgu_jax.kernels import cpu, gpu
from mgu_jax.layer import mesh, newton
from mgu_jax.layer.bptt import Marks, Plan, assert_shapes, bptt, state_before
from mgu_jax.layer.cell import advance, prepare, project
from mgu_jax.layer.family import MGU, Cell, check_cell
from mgu_jax.layer.noise import Rate, Rates, mask_weights, sample
from mgu_jax.layer.parallel import parallel
from mgu_jax.layer.params import (
    Params,
    check_features,
    check_lengths,
    check_params,
    check_resets,
    check_state,
    check_time_first,
    time_first,
)
from mgu_jax.layer.products import Precision, Products, wide
from mgu_jax.layer.reverse_only import reverse_only
from mgu_jax.layer.segments import SAVE, is_known


@partial(jax.jit, static_argnums=0)
def definition(
    plan: Plan, params: Params, xs: Array, h0: Array, h_reset: Array | None, marks: Marks
) -> tuple[Array, Array]:
    """hs [T, B, H] and h_last [B, H] from xs [T, B, D], h0 and h_reset [B, H]: one step after another."""
    assert_shapes(xs, h0, h_reset, marks)
    # JAX sums the derivatives of these over time in the dtype that they have outside of the loop.
    shared = jax.tree.map(lambda a: a.astype(wide(a)), (prepare(params, plan.cell, marks.mask), h_reset))

    def one_step(h: Array, rows: tuple[Array, Array | None, Array | None]) -> tuple[Array, Array]:
        x, alpha, reset = rows
        weights, h_reset = jax.tree.map(lambda a: a.astype(h.dtype), shared)
        h = state_before(h, h_reset, reset)
        h_next, _ = advance(weights, h, project(weights.params, x, alpha, plan.product), plan.cell, plan.product)
        return h_next, h_next

    h_last, hs = lax.scan(one_step, h0, (xs, marks.alpha, marks.reset), reverse=plan.reverse)
    return hs, h_last


def _manual(
    plan: Plan, params: Params, xs: Array, h0: Array, h_reset: Array | None, marks: Marks
) -> tuple[Array, Array]:
    return bptt(plan, *reverse_only((params, xs, h0, h_reset)), marks)


def _manual_with(**places: Any) -> Callable[..., tuple[Array, Array]]:
    """``_manual`` with other loops, or other code for whole segments, in their places in the plan."""

    def run(plan: Plan, *arguments: Any) -> tuple[Array, Array]:
        return _manual(replace(plan, **places), *arguments)

    return run


def _parallel(
    plan: Plan, params: Params, xs: Array, h0: Array, h_reset: Array | None, marks: Marks
) -> tuple[Array, Array]:
    if plan.cell.linear:
        return parallel(plan, params, xs, h0, h_reset, marks)
    return _manual(_in_segments(replace(plan, loops=newton.LOOPS), xs, h0), params, xs, h0, h_reset, marks)


def _in_segments(plan: Plan, xs: Array, h0: Array) -> Plan:
    """The plan of "parallel" with a known number of steps in a segment."""
    return replace(plan, segment=plan.segment or newton.length(plan, xs, h0))


# Each takes (plan, params, xs, h0, h_reset, marks) as ``definition`` does, and has to equal it.
IMPLEMENTATIONS = {
    "manual": _manual,
    "autodiff": definition,
    "parallel": _parallel,
    "parallel_backward": _manual_with(loops=newton.LOOP_FORWARD),
    "mosaic_gpu": _manual_with(loops=gpu.LOOPS),
    "native": _manual_with(segments=cpu.SEGMENTS),
}
KERNELS = {"mosaic_gpu": gpu.refusal, "native": cpu.refusal}


def _is_worth(kernel: str, xs: Array) -> bool:
    """Whether to take a kernel that can serve where the user names no implementation."""
    if kernel == "native":  # its first use compiles it, which takes seconds
        return all(map(is_known, xs.shape)) and cpu.is_faster(math.prod(xs.shape[1:-1])) and cpu.exists()
    return True


@dataclass(frozen=True)
class Execution:
    """How a sequence is run; the options change time and memory and, by rounding alone, the result.

    Attributes:
        implementation, save, segment, precision, compute_dtype: as in ``scan``.

    Raises:
        TypeError: compute_dtype is not a dtype.
        ValueError: an unknown name, a segment below 1, or save or segment for an implementation that ignores them.
    """

    implementation: str | None = None
    save: str = "gates"
    segment: int | None = None
    precision: Precision = None
    compute_dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        checks.check_choice("implementation", self.implementation, (None, *IMPLEMENTATIONS))
        checks.check_choice("save", self.save, SAVE)
        if self.segment is not None:
            checks.check_size("segment", self.segment)
        if self.implementation == "autodiff":
            self._refuse_segments("'autodiff' (others, such as 'manual', use them)")
        object.__setattr__(self, "compute_dtype", self.product.compute_dtype)

    def _refuse_segments(self, where: str) -> None:
        if self.save != "gates" or self.segment is not None:
            raise ValueError(
                f"save and segment must be left out with implementation {where}; got {self.save!r} and "
                f"{self.segment!r}."
            )

    def chosen(self, cell: Cell, params: Params, xs: Array) -> str:
        """The name of the implementation that runs: the one that is named or, for ``None``, the fastest that can serve.

        Raises ValueError, with the reason, if the one that is named cannot serve.
        """
        for name, refusal in KERNELS.items():
            if self.implementation == name or (self.implementation is None and _is_worth(name, xs)):
                why = refusal(cell, params.W_h.shape[1], checks.dtype_of(params.W_h), self.product)
                if not all(map(is_known, xs.shape)):
                    why = "needs a known number of steps and samples"
                elif any(map(mesh.varies_over, (xs, params.W_h))):
                    why = "needs check_vma=False inside jax.shard_map"
                if why and self.implementation:
                    raise ValueError(f"implementation {name!r} {why}.")
                if not why:
                    return name
        return self.implementation or "manual"

    @property
    def product(self) -> Products:
        """How rows and weights are multiplied."""
        return Products(self.precision, checks.dtype_name("compute_dtype", self.compute_dtype))

    def check(self, cell: Cell, hidden_size: int, dtype: Any) -> None:
        """Raise ValueError, with the reason, if the implementation cannot serve a layer of the cell."""
        if self.implementation == "parallel" and cell.linear:
            self._refuse_segments("'parallel' for a cell that is linear in the state")
        elif self.implementation in ("parallel", "parallel_backward"):
            why = newton.refusal(cell, hidden_size, dtype, self.implementation == "parallel")
            if why:
                raise ValueError(f"implementation {self.implementation!r} {why}.")

    def plan(self, cell: Cell, reverse: bool) -> Plan:
        """The static part of a run with these options."""
        return Plan(cell, reverse, self.product, self.save, self.segment)


def scan(
    params: Params,
    xs: Array,
    h0: Array | None = None,
    *,
    cell: Cell = MGU,
    lengths: Array | None = None,
    mask: Array | None = None,
    resets: Array | None = None,
    reset_to: Array | None = None,
    reverse: bool = False,
    time_axis: int = 0,
    implementation: str | None = None,
    save: str = "gates",
    segment: int | None = None,
    precision: Precision = None,
    compute_dtype: DTypeLike | None = None,
    key: Array | None = None,
    recurrent_dropout: Rate = 0.0,
    zoneout: Rate = 0.0,
    dropconnect: Rate = 0.0,
) -> tuple[Array, Array]:
    """The states of a layer that reads a sequence: hs [T, ..., H] after every step, and h_last [..., H].

    h_last is the state after the last step that runs: step T or, with lengths, the last step of each sequence, and with
    reverse, the first. On a mesh with explicit axes (the default of ``jax.make_mesh``) both are split as xs, h0 and the
    columns of W_h are, and XLA places what is computed in between.

    Args:
        params: the layer's ``Params``. In half precision, their gradients are summed over steps and samples in float32.
        xs: [T, ..., D], time first, then any number of batch axes or none. T may be 0.
        h0: [..., H], the state before the first step; zeros if ``None``.
        cell: the member of the family that params belongs to.
        lengths: whole numbers [...] in [0, T], the number of steps of each sequence. The steps after them are padding:
            the state stays as it is, hs is zero there, and no gradient flows. The padding in xs may hold anything, NaN
            included.
        mask: bool [T, ...]; where false, the step is a hole in the sequence, such as a missing observation, and is left
            out like padding. A reset at such a step still takes place.
        resets: bool [T, ...]; where true, the step starts from h0, or from reset_to.
        reset_to: [..., H], the state from which a step with a reset starts; h0 if ``None``. Give it where h0 comes from
            an earlier part of the same sequence.
        reverse: run from the last step (of each sequence's own length) to the first; hs stays in the order of time.
        time_axis: the axis of time in xs, mask, resets and hs; 1 where the batch comes first, as in xs [B, T, D]. The
            loop needs time first, so another axis costs a copy of xs and of hs, and of their gradients.
        implementation: "manual" (the hand-written backward pass of ``layer.bptt``; reverse mode only), "autodiff" (the
            definition, differentiated by JAX in any mode; slower), "parallel" (all steps of a segment at once),
            "parallel_backward" ("manual" without a loop in the backward pass, for diagonal recurrences), "mosaic_gpu"
            ("manual" with its two loops as one kernel each, for float32 layers of up to 192 units on a Hopper GPU; not
            yet run on one) or "native" ("manual" as a program in C++, for dense layers in float32 or float64 on a CPU;
            the first use compiles it, in about ten seconds). ``None`` takes "mosaic_gpu" where it can serve, "native"
            where it can serve, has been compiled and is faster, and "manual" elsewhere; ``which`` says which.

            "parallel" is exact without iterations for members that are linear in the state, such as MIN_GRU. For
            others, in float32 and float64, with a diagonal recurrence or up to 32 units, Newton's method finds the
            states (``layer.newton``). If it does not converge in a segment, as where the layer is chaotic, the loop
            computes this segment, so the numbers are those of the loop in any case; ``convergence`` says what happened.
            Under ``vmap``, the loop computes a segment for all members if one needs it. On CPUs it is slower than
            "manual".
        save: what all but "autodiff" keep for the backward pass: "gates" (all states and gates; fastest except for very
            long T), "states" (all states; the gates are computed again) or "segments" (one state per segment;
            everything else is computed again, and memory grows with the square root of T if the loss uses h_last
            alone).
        segment: the number of steps for which these compute input products and weight gradients at once, and for
            "parallel" the number of states that it finds at once. ``None`` chooses by T, B, H and the backend.
        precision: of all products, forward and backward: "default", "high", "highest", a ``jax.lax.Precision`` or a
            ``jax.lax.DotAlgorithmPreset``.
        compute_dtype: a dtype such as ``jnp.bfloat16`` to which the operands of all products are rounded, forward and
            backward. Parameters, state and sums keep the dtype of params. "autodiff" also rounds the gradient of each
            product.
        key: one PRNG key for the noise of training. Without one, recurrent_dropout and dropconnect are off, and zoneout
            takes its expectation. The three rates are probabilities in [0, 1); they may be traced, and get no gradient.
        recurrent_dropout: drops units from what the products see of the state, with one mask per sequence (Gal and
            Ghahramani 2016, arXiv 1512.05287).
        zoneout: lets single units keep their state for a step (Krueger et al. 2017, arXiv 1606.01305).
        dropconnect: drops entries of U_f and U_h, the same ones for the whole call (Merity et al. 2017, arXiv
            1708.02182).

    Raises:
        TypeError: an argument is not an array or has the wrong dtype; or, when JAX differentiates, forward mode through
            "manual".
        ValueError: the shapes do not fit each other, time_axis is not an axis of xs before its features, lengths
            outside [0, T], a rate outside [0, 1), an unknown name, a segment below 1, reset_to without resets, an
            implementation that cannot serve the cell, or save or segment with an implementation that does not use them.
    """
    return run(
        params,
        xs,
        h0,
        cell=cell,
        execution=Execution(implementation, save, segment, precision, compute_dtype),
        lengths=lengths,
        mask=mask,
        resets=resets,
        reset_to=reset_to,
        reverse=reverse,
        time_axis=time_axis,
        key=key,
        recurrent_dropout=recurrent_dropout,
        zoneout=zoneout,
        dropconnect=dropconnect,
    )


def which(
    params: Params,
    xs: Array,
    *,
    cell: Cell = MGU,
    implementation: str | None = None,
    precision: Precision = None,
    compute_dtype: DTypeLike | None = None,
) -> str:
    """The name of the implementation that ``scan`` runs, here and now, with these arguments.

    To learn why it is not "mosaic_gpu" or "native", ask for that: the error gives the reason. "native" has to be
    compiled before it is chosen, by ``python -m mgu_jax.kernels`` or by a first use under its name.

    Args:
        params, xs, cell, implementation, precision, compute_dtype: as in ``scan``.

    Raises:
        TypeError, ValueError: as in ``scan``.
    """
    execution = Execution(implementation, precision=precision, compute_dtype=compute_dtype)
    check_cell(cell)
    _, H = check_params(params, cell)
    execution.check(cell, H, checks.dtype_of(params.W_h))
    check_features("xs", xs, "T, ..., ", params, "W_h")
    return execution.chosen(cell, params, xs)


def convergence(params: Params, xs: Array, h0: Array | None = None, **options: Any) -> newton.Convergence:
    """How Newton's method ends if ``scan`` runs with the same arguments and implementation "parallel".

    A ``Convergence`` of arrays with one entry per segment: iterations, the last correction, the residual, and whether
    the loop computed the segment instead. It costs as much as the forward pass.

    Args:
        params, xs, h0, options: as in ``scan``, without implementation.

    Raises:
        TypeError: an option that ``scan`` lacks, or implementation; or as in ``scan``.
        ValueError: a cell that is linear in the state, for which nothing is iterated; or as in ``scan``.
    """
    for name in options:
        if name == "implementation" or name not in (scan.__kwdefaults__ or {}):
            raise TypeError(f"options must be keywords of scan, without implementation; got {name!r}.")
    names = Execution.__dataclass_fields__.keys() - {"implementation"}
    execution = Execution("parallel", **{name: options.pop(name) for name in names & options.keys()})
    plan, _, arguments, _ = _checked(params, xs, h0, execution=execution, **options)
    if plan.cell.linear:
        raise ValueError(
            f"cell must not be linear in the state, since 'parallel' then iterates nothing; got {plan.cell}."
        )

    def report(*arguments: Any) -> newton.Convergence:
        arguments, _ = _one_batch_axis(*arguments)
        return newton.report(_in_segments(plan, *arguments[1:3]), *arguments)

    return mesh.automatic(report, arguments, lambda *_: PartitionSpec())


def run(*arguments: Any, **options: Any) -> tuple[Array, Array]:
    """hs and h_last, as ``scan`` returns them, with the options of execution as one value."""
    plan, implementation, arguments, time_axis = _checked(*arguments, **options)
    hs, h_last = mesh.automatic(partial(_run, plan, IMPLEMENTATIONS[implementation]), arguments, _placed)
    return (hs if time_axis == 0 else jnp.moveaxis(hs, 0, time_axis)), h_last


def _checked(
    params: Params,
    xs: Array,
    h0: Array | None,
    *,
    execution: Execution,
    cell: Cell = MGU,
    lengths: Array | None = None,
    mask: Array | None = None,
    resets: Array | None = None,
    reset_to: Array | None = None,
    reverse: bool = False,
    time_axis: int = 0,
    key: Array | None = None,
    recurrent_dropout: Rate = 0.0,
    zoneout: Rate = 0.0,
    dropconnect: Rate = 0.0,
) -> tuple[Plan, str, tuple[Any, ...], int]:
    """The plan, the name of the implementation, the arguments of ``_run`` with time in front, and where time was."""
    check_cell(cell)
    checks.check_choice("reverse", reverse, (False, True))
    _, H = check_params(params, cell)
    dtype = checks.dtype_of(params.W_h)
    execution.check(cell, H, dtype)
    in_front = isinstance(time_axis, int) and time_axis == 0
    check_features("xs", xs, "T, ..., " if in_front else "..., ", params, "W_h")
    if in_front:
        check_time_first(xs.shape[:-1], {"lengths": lengths, "h0": h0})
    else:
        xs, mask, resets = time_first(time_axis, xs, xs.ndim - 1, mask=mask, resets=resets)
    T, *batch, _ = xs.shape
    implementation = execution.chosen(cell, params, xs)
    if implementation.startswith("parallel") and not is_known(T):
        raise ValueError(f"implementation {implementation!r} needs a known number of steps; got {T}.")
    if h0 is None:
        h0 = jnp.zeros((*batch, H), dtype)
    check_state("h0", h0, tuple(batch), params)
    check_lengths(lengths, T, tuple(batch))
    check_resets(mask, (T, *batch), name="mask")
    check_resets(resets, (T, *batch))
    if reset_to is not None:
        check_state("reset_to", reset_to, tuple(batch), params)
        if resets is None:
            raise ValueError(f"reset_to must be left out without resets; got {checks.describe(reset_to)}.")
    rates = Rates(recurrent_dropout, zoneout, dropconnect)
    for name, rate in rates._asdict().items():
        checks.check_rate(name, rate)
    if key is not None:
        checks.check_key("key", key)
    arguments = (params, xs, h0, lengths, mask, resets, reset_to, key, rates)
    return execution.plan(cell, reverse), implementation, arguments, time_axis


def _one_batch_axis(
    params: Params,
    xs: Array,
    h0: Array,
    lengths: Array | None,
    mask: Array | None,
    resets: Array | None,
    reset_to: Array | None,
    key: Array | None,
    rates: Rates,
) -> tuple[tuple[Params, Array, Array, Array | None, Marks], Array | None]:
    """The arguments of an implementation, and bool [T, B, 1]: which steps are valid, or ``None`` if all are."""
    (T, *batch, D), H, dtype = xs.shape, h0.shape[-1], checks.dtype_of(params.W_h)
    B = math.prod(batch)
    xs, h0 = jnp.reshape(xs, (T, B, D)), jnp.reshape(h0, (B, H))
    h_reset = None if resets is None else h0 if reset_to is None else jnp.reshape(reset_to, (B, H))
    reset = None if resets is None else jnp.reshape(resets, (T, B, 1))
    alpha, dropped = sample(key, rates, (T, B, H), dtype)
    params = mask_weights(key, rates.dropconnect, params)
    valid = None if mask is None else jnp.reshape(mask, (T, B, 1))
    if lengths is not None:
        before = _before(lengths, T, B)
        valid = before if valid is None else valid & before
        reset = None if reset is None else reset & before
    if valid is not None:
        xs = jnp.where(valid, xs, 0)  # padding may hold NaN, and 0 * NaN is NaN
        alpha = valid.astype(dtype) if alpha is None else jnp.where(valid, alpha, 0)
    return mesh.vary_alike((params, xs, h0, h_reset, Marks(alpha, reset, dropped))), valid


def _run(plan: Plan, implementation: Callable[..., tuple[Array, Array]], *arguments: Any) -> tuple[Array, Array]:
    """hs [T, ..., H] and h_last [..., H] from arguments that are checked."""
    T, (*batch, H) = arguments[1].shape[0], arguments[2].shape
    prepared, valid = _one_batch_axis(*arguments)
    hs, h_last = implementation(plan, *prepared)
    if valid is not None:
        hs = jnp.where(valid, hs, 0)
    return jnp.reshape(hs, (T, *batch, H)), jnp.reshape(h_last, (*batch, H))


def _placed(
    params: Params, xs: Array, h0: Array, lengths: Any, mask: Any, resets: Any, reset_to: Any, *_: Any
) -> tuple[PartitionSpec, PartitionSpec]:
    """How hs and h_last are split on a mesh with explicit axes: as xs, the state and the columns of W_h are."""
    where = mesh.merged(
        mesh.spec(xs)[:-1],
        mesh.spec(resets),
        mesh.spec(mask),
        (None, *mesh.spec(lengths)),
        (*[None] * (xs.ndim - 1), mesh.spec(params.W_h)[-1]),
        (None, *mesh.spec(h0)),
        (None, *mesh.spec(reset_to)),
    )
    return PartitionSpec(*where), PartitionSpec(*where[1:])


def _before(lengths: Array, T: int, B: int) -> Array:
    """bool [T, B, 1]: whether a step lies within its sequence."""
    return jnp.arange(T, dtype=jnp.int32)[:, None, None] < jnp.reshape(lengths, (1, B, 1)).astype(jnp.int32)
