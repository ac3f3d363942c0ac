"""A run as a pure function: one compiled chunk of optimiser steps, for one run and for a sweep of many.

The static side of a run is a ``Recipe``; what multiplies something is traced and travels as a ``Hyper``, so that
``vmap`` reaches it; the state is a ``TrainState`` of arrays alone. One chunk is

    state, losses = run_steps(state, hyper, data, recipe=recipe, steps=K)

K steps in one ``lax.scan``. All that is random in a step follows from the key and the number of the step, so a run that
resumes from a saved state continues as if it had never stopped. On a mesh the samples of every batch are split.

To train otherwise, give a ``Recipe`` another loss, optimiser or model; what a batch is, feed.py says, and what is
traced, optimizers.py. ``fit.py`` is the loop on the host around a chunk.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from mgu_jax import checks
from mgu_jax.model import Model, check_model, check_reads_on, detach
from mgu_jax.training import data as feed
from mgu_jax.training.data import Data
from mgu_jax.training.devices import AXIS, keep
from mgu_jax.training.losses import Loss, cross_entropy
from mgu_jax.training.optimizers import Hyper, Optimizer, check_optimizer, check_precision, in_dtype_of, named

_NOISE = 2**32 - 1  # folded into the key, apart from the numbers of the epochs, which order the samples


class TrainState(NamedTuple):
    """All that changes in a run."""

    step: Array  # int32, how many steps are done
    params: Any  # ``ModelParams`` of an ``mgu_jax.Model``
    opt_state: Any
    key: Array  # all that is random follows from it and from step; does not change
    carry: Any = None  # ``State`` [B, H] of the model, between the windows of a stream
    best: Any = None  # ``Best`` so far, of a run that is validated


class Best(NamedTuple):
    """The parameters with the best score so far."""

    score: Any
    step: Array
    params: Any
    waited: Array  # int32, validations since


@dataclass(frozen=True)
class Recipe:
    """The static side of a run.

    Attributes:
        model: a ``Model``; of one that is not ``mgu_jax.Model``'s, apply takes ``key`` and ``training`` as well.
        loss: (ys, targets) -> scalar, such as ``cross_entropy`` or ``squared_error``; with a mask [T, B] as its third
            argument where the data have lengths and the model reads out every step.
        optimizer: "sgd", "momentum", "adam", "adamw" or "rmsprop", all with clipping and weight decay, which is added
            to the gradient except in "adamw"; or a function of ``Hyper`` that builds an optax transformation inside of
            the compiled chunk.
        schedule: of the learning rate, "constant", or "cosine" or "linear" to zero at total_steps.
        total_steps: the last step that the schedule knows.
        warmup_steps: steps of a linear rise from zero, before the schedule.
        batch_size: samples a step, or rows of a ``Stream``; at least 1, and no more than there are.
        window: T, the steps of a stream that a gradient goes through; ``None`` where data are samples.

    Raises:
        TypeError, ValueError: a value of another kind, or an unknown name.
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
        check_model(self.model, "init", "apply")
        checks.check_size("batch_size", self.batch_size)
        if self.window is not None:
            checks.check_size("window", self.window)
        if not callable(self.loss):
            example = "mgu_jax.training.losses.cross_entropy"
            raise TypeError(f"loss must be a function, such as {example}; got {checks.describe(self.loss)}.")
        check_optimizer(self.optimizer, self.schedule, self.total_steps, self.warmup_steps)

    def build(self, hyper: Hyper, params: Any) -> optax.GradientTransformation:
        """The optimiser for these numbers and parameters."""
        hyper = in_dtype_of(params, hyper)
        if isinstance(self.optimizer, str):
            check_precision(self.optimizer, params)
            return named(self.optimizer, self.schedule, self.total_steps, self.warmup_steps)(hyper)
        return self.optimizer(hyper)


def start(recipe: Recipe, key: Array, hyper: Hyper = Hyper()) -> TrainState:
    """The state before the first step. All that is random in a run comes from ``key``."""
    checks.check_key("key", key)
    init_key, run_key = jax.random.split(key)
    params = recipe.model.init(init_key, forget_bias=hyper.forget_bias, initial_scale=hyper.initial_scale)
    carry = None if recipe.window is None else recipe.model.start(params, (recipe.batch_size,))
    check_reads_on(carry)
    return TrainState(jnp.int32(0), params, recipe.build(hyper, params).init(params), run_key, carry)


def measure(functions: tuple[Loss, ...], ys: Array, batch: Data) -> list[Array]:
    """Losses or metrics of a batch: ys [T, B, K] of a model that reads out every step, [B, K] of one that does not."""
    every_step = ys.ndim == 3
    targets = batch.targets.swapaxes(0, 1) if every_step and batch.targets.ndim > 1 else batch.targets
    mask = mask_of(batch) if every_step else None
    values = [function(ys, targets) if mask is None else function(ys, targets, mask) for function in functions]
    for function, value in zip(functions, values, strict=True):
        name = getattr(function, "__name__", "a loss or metric")
        checks.check_number(f"what {name} returns", value)
    return values


def mask_of(batch: Data) -> Any:
    """bool [T, B]: the steps within the lengths; ``None`` where there are none."""
    if batch.lengths is None:
        return None
    return jnp.arange(batch.xs.shape[1], dtype=jnp.int32)[:, None] < jnp.asarray(batch.lengths, jnp.int32)[None]


def run_model(
    model: Model, params: Any, batch: Data, carry: Any, noise: dict[str, Any] | None = None, mesh: Mesh | None = None
) -> tuple[Array, Any]:
    """ys of a batch, and the state after it where one came in. On a mesh each device runs its own part of the batch.

    ``noise`` holds the rates, and for training the key.
    """
    arguments = (params, batch.xs.swapaxes(0, 1), batch.lengths, carry, noise)

    def run(params: Any, xs: Any, lengths: Any, carry: Any, noise: Any) -> tuple[Array, Any]:
        options = dict(noise or {})
        if "key" in options:
            options["training"] = True
        if lengths is not None:
            options["lengths"] = lengths
        if carry is None:
            return model.apply(params, xs, **options), None
        return model.apply(params, xs, state=carry, return_state=True, **options)

    def run_part(params: Any, xs: Any, lengths: Any, carry: Any, noise: Any) -> tuple[Array, Any]:
        if noise and "key" in noise:  # the parts of a batch have noise of their own
            noise = noise | {"key": jax.random.fold_in(noise["key"], lax.axis_index(AXIS))}
        return run(params, xs, lengths, carry, noise)

    if mesh is None:
        return run(*arguments)
    # Left to itself, XLA gathers what belongs to the steps of all samples before it multiplies (0.7 of the speed).
    every_step = jax.eval_shape(run, *arguments)[0].ndim == 3
    parts, of_steps, whole = PartitionSpec(AXIS), PartitionSpec(None, AXIS), PartitionSpec()
    specs = {
        "in_specs": (whole, of_steps, parts, parts, whole),
        "out_specs": (of_steps if every_step else parts, parts),
    }
    return jax.shard_map(run_part, mesh=mesh, check_vma=False, **specs)(*arguments)


@partial(jax.jit, static_argnames=("recipe", "steps", "mesh"))
def run_steps(
    state: TrainState, hyper: Hyper, data: Any, *, recipe: Recipe, steps: int, mesh: Mesh | None = None
) -> tuple[TrainState, Array]:
    """K = steps optimiser steps in one compiled loop.

    Args:
        state, hyper: of the run.
        data: ``Data``, a ``Stream`` if the recipe has a window, or the ``feed.Stacked`` batches of these steps.
        recipe: the static side of the run.
        steps: K.
        mesh: the samples of every batch, and the states of a stream's rows, are split along its axis.

    Returns:
        The new state and the losses [K] of the batches, each taken before its update.
    """
    optimizer, size = recipe.build(hyper, state.params), (recipe.batch_size, recipe.window)
    noise = jax.random.fold_in(state.key, _NOISE)

    def loss(params: Any, batch: Data, carry: Any, begins: Any, key: Array) -> tuple[Array, Any]:
        if carry is not None:  # an epoch begins with the model's first state, which may be learned
            fresh = recipe.model.start(params, (recipe.batch_size,))
            carry = jax.tree.map(partial(jnp.where, begins), fresh, carry)
        ys, carry = run_model(recipe.model, params, batch, carry, {"key": key} | hyper.rates(), mesh)
        return measure((recipe.loss,), ys, batch)[0], detach(carry)

    def body(state: TrainState, row: Any) -> tuple[TrainState, Array]:
        batch, key = keep(feed.take(data, row, *size), mesh, AXIS), jax.random.fold_in(noise, state.step)
        begins = None if state.carry is None else row == 0
        (value, carry), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, batch, state.carry, begins, key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params, opt_state = keep((optax.apply_updates(state.params, updates), opt_state), mesh)
        carry = keep(carry, mesh, AXIS)
        return TrainState(state.step + 1, params, opt_state, state.key, carry, state.best), value

    return lax.scan(body, state, feed.rows(data, state.key, state.step, steps, *size))
