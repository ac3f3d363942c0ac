"""A run as a pure function: optimiser steps in one compiled loop, for one run and for the members of a sweep.

The static side of a run is a ``Recipe``. Numbers that may be traced travel as a ``Hyper``, so that ``vmap`` reaches
them. The state is a ``TrainState``, which holds only arrays. One call of the compiled loop is

    state, losses = run_steps(state, hyper, data, recipe=recipe, steps=100)

All randomness of a step follows from the key and the number of the step, so a run that resumes from a saved state
continues as if it had never stopped. On a mesh, the samples of every batch are split over the devices.
"""

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
from mgu_jax.training.measure import check_function, check_loss, measure
from mgu_jax.training.optimizers import Optimizer, check_optimizer, check_precision, optimizer_of

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
        model: a ``Model``, or another object with init and apply; apply then takes ``key`` and ``training`` as well.
        loss: (ys, targets) -> scalar, such as ``mgu_jax.losses.cross_entropy`` or ``squared_error``. If the data have
            lengths and the model reads out every step, a mask [T, B] is its third argument.
        optimizer: "sgd", "momentum", "adam", "adamw" or "rmsprop", all with clipping and weight decay, which is added
            to the gradient except in "adamw"; or a function of ``Hyper`` that returns an optax transformation.
        schedule: of the learning rate: "constant", or "cosine" or "linear", which reach zero at total_steps.
        total_steps: the step at which the schedule ends.
        warmup_steps: steps of a linear rise from zero before the schedule.
        batch_size: samples per step, or rows of a ``Stream``.
        window: T, the number of steps of a stream through which a gradient flows; ``None`` if the data are samples.

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

    def build(self, hyper: Hyper, params: Any) -> optax.GradientTransformation:
        """The optimiser for these numbers and parameters."""
        hyper = in_dtype_of(params, hyper)
        if not isinstance(self.optimizer, str):
            return self.optimizer(hyper)
        check_precision(self.optimizer, params)
        return optimizer_of(self.optimizer, hyper, self.schedule, self.total_steps, self.warmup_steps)


@jax.jit
def all_finite(tree: Any) -> Array:
    """Whether all numbers of a pytree are finite, as one bool."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


@partial(jax.jit, static_argnames=("recipe", "steps", "mesh"))
def run_steps(
    state: TrainState, hyper: Hyper, data: Any, *, recipe: Recipe, steps: int, mesh: Mesh | None = None
) -> tuple[TrainState, Array]:
    """The new state and the losses [steps] after optimiser steps in one compiled loop.

    Args:
        state: the state before the first of the steps.
        hyper: the numbers of the run; may be traced.
        data: ``Data``, a ``Stream`` if the recipe has a window, or the ``Stacked`` batches of these steps.
        recipe: the static side of the run.
        steps: the number of steps.
        mesh: the samples of every batch, and the states of a stream's rows, are split along its axis.

    Returns:
        The new state, and the loss of each batch before its update.
    """
    optimizer, size = recipe.build(hyper, state.params), (recipe.batch_size, recipe.window)
    noise = jax.random.fold_in(state.key, _NOISE)

    def loss(params: Any, batch: Data, carry: Any, begins: Any, key: Array) -> tuple[Array, Any]:
        if carry is not None:  # an epoch starts from the model's first state, which may be learned
            fresh = recipe.model.start(params, (recipe.batch_size,))
            carry = jax.tree.map(partial(jnp.where, begins), fresh, carry)
        ys, carry = run_model(recipe.model, params, batch, carry, {"key": key} | hyper.rates(), mesh)
        (value,) = measure((recipe.loss,), ys, batch, reads_every_step(recipe.model))
        return check_loss(recipe.loss, value), detach(carry)

    def body(state: TrainState, index: Any) -> tuple[TrainState, Array]:
        batch = constrain(take(data, index, *size), mesh, AXIS)
        key = jax.random.fold_in(noise, state.step)
        begins = None if state.carry is None else index == 0
        (value, carry), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, batch, state.carry, begins, key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params, opt_state = constrain((optax.apply_updates(state.params, updates), opt_state), mesh)
        carry = constrain(carry, mesh, AXIS)
        return TrainState(state.step + 1, params, opt_state, state.key, carry, state.best), value

    return lax.scan(body, state, batch_index(data, state.key, state.step, steps, *size))
