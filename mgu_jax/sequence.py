"""Running a cell over time: the public ``scan``, which checks its arguments and picks an implementation.

``definition`` is what every implementation has to equal: one ``lax.scan`` over the steps, differentiated by JAX.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from mgu_jax import checks
from mgu_jax.layer.bptt import Marks, Plan, bptt, entering
from mgu_jax.layer.cell import advance, arrange, project
from mgu_jax.layer.family import MGU, Cell, check_cell
from mgu_jax.layer.noise import Rates, mask_weights, sample
from mgu_jax.layer.parallel import parallel
from mgu_jax.layer.params import Params, check_features, check_lengths, check_params, check_resets, check_state
from mgu_jax.layer.products import Products
from mgu_jax.layer.reverse_only import reverse_only
from mgu_jax.layer.segments import SAVE, is_known


@partial(jax.jit, static_argnums=0)
def definition(plan: Plan, params: Params, xs: Array, h0: Array, h_r: Any, marks: Marks) -> tuple[Array, Array]:
    """xs [T, B, D], h0 and h_r [B, H] -> hs [T, B, H], h_last [B, H]: one step after another."""
    loop = arrange(params, plan.cell, marks.m)

    def body(h: Array, at: tuple[Array, Any, Any]) -> tuple[Array, Array]:
        x, k, reset = at
        a = project(params, x, plan.product)._replace(k=k)
        h, _ = advance(loop, entering(h, h_r, reset), a, plan.cell, plan.product)
        return h, h

    h_last, hs = lax.scan(body, h0, (xs, marks.k, marks.reset), reverse=plan.reverse)
    return hs, h_last


def _manual(plan: Plan, params: Params, xs: Array, h0: Array, h_r: Any, marks: Marks) -> tuple[Array, Array]:
    return bptt(plan, *reverse_only((params, xs, h0, h_r)), marks)


def _varying(tree: Any) -> Any:
    """Inside of ``jax.shard_map``: all arrays vary over the mesh axes that any of them varies over, as loops ask for.

    Whatever was the same on all devices, such as params, gets the sum over the devices as its gradient.
    """

    def varies_over(a: Array) -> frozenset[str]:
        return jax.typeof(a).manual_axis_type.varying

    axes = frozenset[str]().union(*map(varies_over, jax.tree.leaves(tree)))

    def cast(a: Array) -> Array:
        missing = tuple(sorted(axes - varies_over(a)))
        return lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(cast, tree)


IMPLEMENTATIONS = {"manual": _manual, "autodiff": definition, "parallel": parallel}


@dataclass(frozen=True)
class Execution:
    """How a sequence is run, apart from what is computed; ``scan`` says what each option means.

    Raises:
        TypeError: a compute_dtype that is not a dtype.
        ValueError: an unknown name, a segment below 1, or save or segment for an implementation that does not use them.
    """

    implementation: str | None = None
    save: str = "gates"
    segment: int | None = None
    precision: Any = None
    compute_dtype: Any = None

    def __post_init__(self) -> None:
        checks.check_choice("implementation", self.implementation, (None, *IMPLEMENTATIONS))
        checks.check_choice("save", self.save, SAVE)
        if self.segment is not None:
            checks.check_size("segment", self.segment)
        if self.implementation not in (None, "manual") and (self.save != "gates" or self.segment is not None):
            raise ValueError(
                f"save and segment must be left out where implementation is {self.implementation!r} (only 'manual' "
                f"uses them); got {self.save!r} and {self.segment!r}."
            )
        object.__setattr__(self, "compute_dtype", checks.dtype_name("compute_dtype", self.compute_dtype))
        Products(self.precision, self.compute_dtype)  # which checks them

    def check(self, cell: Cell) -> None:
        """Raise ValueError, with the reason, if the implementation cannot serve the cell."""
        if self.implementation == "parallel" and not cell.linear:
            raise ValueError(
                "implementation 'parallel' needs a cell whose gate and candidate do not see the state, such as "
                f"MIN_GRU; got gate={cell.gate!r}, candidate={cell.candidate!r}."
            )

    def plan(self, cell: Cell, reverse: bool) -> Plan:
        """The static part of one run over time."""
        return Plan(cell, reverse, Products(self.precision, self.compute_dtype), self.save, self.segment)


def scan(
    params: Params,
    xs: Array,
    h0: Array | None = None,
    *,
    cell: Cell = MGU,
    lengths: Array | None = None,
    resets: Array | None = None,
    reset_to: Array | None = None,
    reverse: bool = False,
    implementation: str | None = None,
    save: str = "gates",
    segment: int | None = None,
    precision: Any = None,
    compute_dtype: Any = None,
    key: Array | None = None,
    recurrent_dropout: Any = 0.0,
    zoneout: Any = 0.0,
    dropconnect: Any = 0.0,
) -> tuple[Array, Array]:
    """Run a cell over a sequence.

    Args:
        params: the layer's ``Params``.
        xs: [T, ..., D], time first, then any number of batch axes, none included. T may be 0.
        h0: [..., H], the state before the first step; zeros if ``None``.
        cell: the member of the family that params belongs to.
        lengths: whole numbers in [0, T], [...]: how many steps each sequence has. Past its end a sequence keeps its
            state, gives zeros, and takes no gradient; what stands there in xs changes nothing, NaN included.
        resets: bool [T, ...]: where true, the state that enters the step is h0, or reset_to.
        reset_to: [..., H], the state that resets put in; h0 if ``None``. Give it where h0 is carried on from a part of
            the sequence that came before.
        reverse: run from the last step (of each sequence's own length) to the first; hs stays in the order of time.
        implementation: "manual" (the hand-written backward of ``layer.bptt``; reverse mode only), "autodiff" (the
            definition, differentiated by JAX in any mode; slower) or "parallel" (all steps at once, for members that
            are linear in the state, such as MIN_GRU). ``None`` is "manual".
        save: what "manual" keeps for its backward pass: "gates" (every state and gate; fastest, but for very long T),
            "states" (the states; gates are computed again) or "segments" (one state per segment; all else is computed
            again, and if the loss needs only h_last, memory grows with the square root of T).
        segment: how many steps "manual" takes together outside of its loop; ``None`` picks by T, B, H and the backend.
        precision: of all products, forward and backward: "default", "high", "highest", a ``jax.lax.Precision`` or a
            ``jax.lax.DotAlgorithmPreset``.
        compute_dtype: such as ``jnp.bfloat16``: operands of products are rounded to it, forward and backward, while
            parameters, state and sums keep the dtype of params ("autodiff" rounds the gradient of each product too).
        key: one PRNG key, for training with noise; without one the three below are off, and zoneout takes its
            expectation. All three are probabilities in [0, 1), may be traced, and get no gradient.
        recurrent_dropout: one mask a sequence, on what the products see of the state (Gal and Ghahramani 2016,
            arXiv 1512.05287).
        zoneout: each unit keeps its state for a step (Krueger et al. 2017, arXiv 1606.01305).
        dropconnect: on the entries of U_f and U_h, the same for the whole call (Merity et al. 2017, arXiv 1708.02182).

    Returns:
        hs [T, ..., H], the state after every step, and h_last [..., H], the state after the last step that ran.

    Raises:
        TypeError: an argument is no array, or not of the dtype that it has to have; at differentiation, forward mode
            through "manual".
        ValueError: shapes that do not fit each other, lengths outside of [0, T], a rate outside of [0, 1), an unknown
            name, a segment below 1, reset_to without resets, an implementation that cannot serve the cell, or save or
            segment with one that is not "manual".
    """
    return run(
        params,
        xs,
        h0,
        cell=cell,
        execution=Execution(implementation, save, segment, precision, compute_dtype),
        lengths=lengths,
        resets=resets,
        reset_to=reset_to,
        reverse=reverse,
        key=key,
        recurrent_dropout=recurrent_dropout,
        zoneout=zoneout,
        dropconnect=dropconnect,
    )


def run(
    params: Params,
    xs: Array,
    h0: Array | None,
    *,
    cell: Cell,
    execution: Execution,
    lengths: Array | None = None,
    resets: Array | None = None,
    reset_to: Array | None = None,
    reverse: bool = False,
    key: Array | None = None,
    recurrent_dropout: Any = 0.0,
    zoneout: Any = 0.0,
    dropconnect: Any = 0.0,
) -> tuple[Array, Array]:
    """``scan``, with the options of execution as one value."""
    check_cell(cell)
    execution.check(cell)
    checks.check_choice("reverse", reverse, (False, True))
    _, hidden_size = check_params(params, cell)
    check_features("xs", xs, "T, ..., ", params, "W_h")
    steps, *batch, features = xs.shape
    if execution.implementation == "parallel" and not is_known(steps):
        raise ValueError(f"implementation 'parallel' needs a number of steps that is known; got {steps}.")
    dtype = checks.dtype_of(params.W_h)
    if h0 is None:
        h0 = jnp.zeros((*batch, hidden_size), dtype)
    check_state("h0", h0, tuple(batch), params)
    check_lengths(lengths, steps, tuple(batch))
    check_resets(resets, (steps, *batch))
    if reset_to is not None:
        check_state("reset_to", reset_to, tuple(batch), params)
        if resets is None:
            raise ValueError(f"reset_to must be left out where resets is; got {checks.describe(reset_to)}.")
    rates = Rates(recurrent_dropout, zoneout, dropconnect)
    for name, rate in rates._asdict().items():
        checks.check_rate(name, rate)
    if key is not None:
        checks.check_key("key", key)

    rows = math.prod(batch)  # one batch axis inside, whatever came
    xs, h0 = jnp.reshape(xs, (steps, rows, features)), jnp.reshape(h0, (rows, hidden_size))
    h_r = None if resets is None else h0 if reset_to is None else jnp.reshape(reset_to, (rows, hidden_size))
    k, m = sample(key, rates, (steps, rows, hidden_size), dtype)
    params = mask_weights(key, dropconnect, params)
    reset, valid = None if resets is None else jnp.reshape(resets, (steps, rows, 1)), None
    if lengths is not None:
        counted = jnp.reshape(lengths, (1, rows, 1)).astype(jnp.int32)
        valid = jnp.arange(steps, dtype=jnp.int32)[:, None, None] < counted
        xs = jnp.where(valid, xs, 0)  # padding may hold anything, and 0 * NaN is NaN
        k = valid.astype(dtype) if k is None else jnp.where(valid, k, 0)
        reset = None if reset is None else reset & valid

    arguments = _varying((params, xs, h0, h_r, Marks(k, reset, m)))
    hs, h_last = IMPLEMENTATIONS[execution.implementation or "manual"](execution.plan(cell, reverse), *arguments)
    if valid is not None:
        hs = jnp.where(valid, hs, 0)
    return jnp.reshape(hs, (steps, *batch, hidden_size)), jnp.reshape(h_last, (*batch, hidden_size))
