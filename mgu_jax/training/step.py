"""A run as a pure function: optimiser steps in one compiled loop, for one run and for the members of a sweep.

The static side of a run is a ``Recipe``. Numbers that may be traced travel as a ``Hyper``, so that ``vmap`` reaches
them. The state is a ``TrainState``, which holds only arrays. One call of the compiled loop is

    state, losses = run_steps(state, hyper, data, recipe=recipe, steps=100)

All randomness of a step follows from the key and the number of the step, so a run that resumes from a saved state
continues as if it had never stopped. On a mesh, the samples of every batch are split over the devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh

from mgu_jax import checks
from mgu_jax.model import Model, check_model, detach
from mgu_jax.training.batch import reads_every_step, run_model
from mgu_jax.training.data import Data, batch_index, take
from mgu_jax.training.devices import AXIS, constrain
from mgu_jax.training.hyper import Hyper, in_dtype_of
from mgu_jax.training.losses import Loss, cross_entropy
from mgu_jax.training.measure import check_function, check_loss, measure, takes
from mgu_jax.training.optimizers import Optimizer, check_optimizer, check_precision, optimizer_of
from mgu_jax.training.wrappers import Average, Paired, needs_pair, paired, passes_over

EvaluateAt = Callable[[Any, Any], Any]  # (opt_state, params) -> params

_NOISE = 2**32 - 1  # folded into the key; distinct from the numbers of the epochs, which order the samples


class Best(NamedTuple):
    """The parameters with the best score so far."""

    score: Any
    step: Array
    params: Any
    waited: Array  # int32, validations since then
    higher: Array  # bool, whether a higher score is better


class TrainState(NamedTuple):
    """Everything that changes during a run."""

    step: Array  # int32, the number of steps done
    params: Any  # ``ModelParams`` of an ``mgu_jax.Model``
    opt_state: Any
    key: Array  # never changes; all randomness follows from it and from step
    carry: Any = None  # ``State`` [B, H] of the model between the windows of a stream
    best: Any = None  # ``Best`` of a run with a validation


@dataclass(frozen=True)
class Recipe:
    """The static side of a run.

    Attributes:
        model: a ``Model``, or another object with ``init(key, forget_bias=, initial_scale=)`` and ``apply(params, xs,
            key=, training=)``, and the other arguments of ``Model.apply`` that the data and the loss need. It gives one
            output per sample, [B, ...] or any pytree of such, unless it has an attribute ``readout`` of "all": then it
            gives one per step, [T, B, ...].
        loss: (ys, targets) -> scalar, such as ``mgu_jax.losses.cross_entropy`` or ``squared_error``. It may also take,
            by name, ``mask`` (bool [T, B], the steps within the lengths and without holes, of a model that reads out
            every step; ``None`` if all count), ``weights`` (those of the data, [B] or [T, B]), ``hs`` (the hidden
            states [T, B, F], those of all layers side by side) and ``params``. It must take mask and weights where
            there are some; a third argument of another name is the mask. It may also return (scalar, dictionary of
            scalars): their means over a call are among the scores that ``on_call`` gets.
        optimizer: "sgd", "momentum", "adam", "adamw" or "rmsprop", all with clipping and weight decay, which is added
            to the gradient except in "adamw"; or a function of ``Hyper`` that returns an optax transformation.
        schedule: of the learning rate: "constant", or "cosine" or "linear", which reach zero at total_steps.
        total_steps: the step at which the schedule ends.
        warmup_steps: steps of a linear rise from zero before the schedule.
        batch_size: samples per step, or rows of a ``Stream``.
        window: T, the number of steps of a stream through which a gradient flows; ``None`` if the data are samples.
        pass_over: how many batches in a row may have a loss or gradient that is not finite. They change nothing but
            the number of the step, and ``mgu_jax.passed_over`` counts them.
        evaluate_at: which parameters are validated and kept as ``best``: ``mgu_jax.ema(decay)``, or a function
            (opt_state, params) -> params such as ``optax.contrib.schedule_free_eval_params``; of an
            ``optax.lookahead``, params are its pair. ``None`` are the parameters of the training. ``eval_params`` gives
            them for a state.

    Raises:
        TypeError: the model lacks a method, or an attribute has another type.
        ValueError: a name is unknown, or numbers of steps do not fit together.
    """

    model: Model
    loss: Loss = cross_entropy
    optimizer: str | Optimizer = "adamw"
    schedule: str = "constant"
    total_steps: int | None = None
    warmup_steps: int = 0
    batch_size: int = 32
    window: int | None = None
    pass_over: int = 0
    evaluate_at: EvaluateAt | None = None

    def __post_init__(self) -> None:
        check_model(self.model, "init", "apply", *(() if self.window is None else ("start",)))
        checks.check_hashable("model", self.model)
        reads_every_step(self.model)
        checks.check_size("batch_size", self.batch_size)
        if self.window is not None:
            checks.check_size("window", self.window)
        check_function("loss", self.loss)
        check_optimizer(self.optimizer, self.schedule, self.total_steps, self.warmup_steps)
        checks.check_hashable("optimizer", self.optimizer)
        checks.check_size("pass_over", self.pass_over, 0)
        if self.evaluate_at is not None and not callable(self.evaluate_at):
            rule = "evaluate_at must be mgu_jax.ema(decay) or a function (opt_state, params) -> params"
            raise TypeError(f"{rule}; got {checks.describe(self.evaluate_at)}.")
        checks.check_hashable("evaluate_at", self.evaluate_at)

    def build(self, hyper: Hyper, params: Any) -> optax.GradientTransformationExtraArgs:
        """The optimiser for these numbers and parameters. Its update also takes value, grad and value_fn."""
        hyper = in_dtype_of(params, hyper)
        if isinstance(self.optimizer, str):
            check_precision(self.optimizer, params)
            made = optimizer_of(self.optimizer, hyper, self.schedule, self.total_steps, self.warmup_steps)
        else:
            made = self.optimizer(hyper)
        optimizer = optax.with_extra_args_support(made)
        if not isinstance(self.optimizer, str) and needs_pair(optimizer, params):
            optimizer = paired(optimizer)
        if isinstance(self.evaluate_at, Average):
            optimizer = self.evaluate_at.around(optimizer)
        if self.pass_over:
            optimizer = optax.apply_if_finite(optimizer, self.pass_over)
        return optax.with_extra_args_support(optimizer)

    def eval_params(self, state: TrainState) -> Any:
        """The parameters to evaluate a state with, as ``evaluate_at`` chooses them; the state's own if it is ``None``.

        Of the members of a sweep: ``jax.vmap(recipe.eval_params)(state.members)``.
        """
        if self.evaluate_at is None:
            return state.params
        opt_state, params = state.opt_state, state.params
        if self.pass_over:
            opt_state = opt_state.inner_state
        if isinstance(opt_state, Paired):
            opt_state, params = opt_state.inner, optax.LookaheadParams(params, opt_state.slow)
        chosen = self.evaluate_at(opt_state, params)
        return jax.tree.map(lambda own, other: jnp.asarray(other, own.dtype), state.params, chosen)


@jax.jit
def all_finite(tree: Any) -> Array:
    """Whether all numbers of a pytree are finite, as one bool."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def failed_at(losses: Array, params: Any, opt_state: Any) -> Array:
    """The first of the steps, counted from 0, that was not finite; -1 if all were, or were passed over.

    It is the number of the steps if the last update alone was not finite, which no loss has seen yet. An optimiser that
    has passed over too many batches makes an update that is not finite; the first is then the first of these batches.
    """
    good, steps, fine = jnp.isfinite(losses), len(losses), all_finite(params)
    if passes_over(opt_state):
        first = jnp.where(jnp.any(good), steps - jnp.argmax(good[::-1]), 0)
    else:
        first, fine = jnp.where(jnp.all(good), steps, jnp.argmin(good)), fine & jnp.all(good)
    return jnp.where(fine, -1, first).astype(jnp.int32)


@partial(jax.jit, static_argnames=("recipe", "steps", "mesh"))
def run_steps(
    state: TrainState, hyper: Hyper, data: Any, *, recipe: Recipe, steps: int, mesh: Mesh | None = None
) -> tuple[TrainState, Array]:
    """The new state and the losses [steps], as ``run_and_report`` gives them."""
    return run_and_report(state, hyper, data, recipe=recipe, steps=steps, mesh=mesh)[:2]


@partial(jax.jit, static_argnames=("recipe", "steps", "mesh"))
def run_and_report(
    state: TrainState, hyper: Hyper, data: Any, *, recipe: Recipe, steps: int, mesh: Mesh | None = None
) -> tuple[TrainState, Array, dict[str, Array]]:
    """The new state, the losses and the auxiliary values after optimiser steps in one compiled loop.

    Args:
        state: the state before the first of the steps.
        hyper: the numbers of the run; may be traced.
        data: ``Data``, a ``Stream`` if the recipe has a window, or the ``Stacked`` batches of these steps.
        recipe: the static side of the run.
        steps: the number of steps.
        mesh: the samples of every batch, and the states of a stream's rows, are split along its axis.

    Returns:
        The new state, the loss of each batch before its update, [steps], and what the recipe's loss returns beside it:
        a dictionary of arrays [steps], which may be empty.
    """
    optimizer, size = recipe.build(hyper, state.params), (recipe.batch_size, recipe.window)
    noise = jax.random.fold_in(state.key, _NOISE)

    def before(params: Any, carry: Any, begins: Any) -> Any:
        """The state before a window: an epoch starts from the model's first state, which may be learned."""
        fresh = recipe.model.start(params, (recipe.batch_size,))
        return jax.tree.map(partial(jnp.where, begins), fresh, carry)

    def loss(params: Any, batch: Data, carry: Any, begins: Any, key: Array) -> tuple[Array, Any]:
        if carry is not None:
            carry = before(params, carry, begins)
        noisy, hidden = {"key": key} | hyper.rates(), takes((recipe.loss,), "hs")
        ys, hs, carry = run_model(recipe.model, params, batch, carry, noisy, mesh, hidden)
        ((value, others),) = measure((recipe.loss,), ys, batch, reads_every_step(recipe.model), hs, params)
        return check_loss(recipe.loss, value), (detach(carry), others)

    def body(state: TrainState, index: Any) -> tuple[TrainState, tuple[Array, dict[str, Array]]]:
        batch = constrain(take(data, index, *size), mesh, AXIS)
        key = jax.random.fold_in(noise, state.step)
        begins: Any = None if state.carry is None else index == 0
        with_gradient = jax.value_and_grad(loss, has_aux=True)
        (value, (carry, others)), gradient = with_gradient(state.params, batch, state.carry, begins, key)
        passing = passes_over(state.opt_state)
        if passing:  # a loss may overflow where its gradient does not
            gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(value), g, jnp.nan), gradient)
        more = {"value": value, "grad": gradient, "value_fn": lambda p: loss(p, batch, state.carry, begins, key)[0]}
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, **more)
        if carry is not None and passing:  # one that is not finite would spoil all later windows
            unspoilt = before(state.params, state.carry, begins)
            carry = jax.tree.map(partial(jnp.where, all_finite(carry)), carry, unspoilt)
        params, opt_state = constrain((optax.apply_updates(state.params, updates), opt_state), mesh)
        carry = constrain(carry, mesh, AXIS)
        return TrainState(state.step + 1, params, opt_state, state.key, carry, state.best), (value, others)

    new, (losses, others) = lax.scan(body, state, batch_index(data, state.key, state.step, steps, *size))
    return new, losses, others
