"""Training: one compiled chunk of optimiser steps, and ``fit``, the loop on the host around it.

The static side of a run is a ``Recipe``; what multiplies something is traced and travels as a ``Hyper``, so that
``vmap`` reaches it; the state is a ``TrainState`` of arrays alone. One chunk is

    state, losses = chunk(state, hyper, data, recipe=recipe, steps=K)

K steps in one ``lax.scan``. Which samples make the batch of a step follows from the key and the number of the step
only, so a run that resumes from a saved state continues as if it had never stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from mgu_jax import checks
from mgu_jax.losses import Loss, cross_entropy
from mgu_jax.model import Model
from mgu_jax.progress import Progress
from mgu_jax.stack import ModelParams


class Data(NamedTuple):
    """Samples first, as data sets come; a batch is turned to time first when it is drawn."""

    xs: Any  # [N, T, D]
    targets: Any  # [N] or [N, K] for a model that reads out the last step, [N, T] or [N, T, K] for one that reads all


class Hyper(NamedTuple):
    """What a run can be swept over: scalars, each of which may be traced."""

    learning_rate: Any = 1e-3
    weight_decay: Any = 0.0
    clip_norm: Any = jnp.inf  # largest global norm of a gradient
    forget_bias: Any = -1.0  # initial, in the paper's sign
    initial_scale: Any = 1.0  # factor on all initial weights


class TrainState(NamedTuple):
    """All that changes in a run."""

    step: Array  # int32, how many steps are done
    params: ModelParams
    opt_state: Any
    key: Array  # draws the order of the samples; does not change


Optimizer = Callable[[Hyper], optax.GradientTransformation]


def adam(hyper: Hyper, total_steps: int | None = None) -> optax.GradientTransformation:
    """Clipping, then Adam with decoupled weight decay; cosine decay to zero over total_steps, if given."""
    rate = hyper.learning_rate if total_steps is None else optax.cosine_decay_schedule(hyper.learning_rate, total_steps)
    return optax.chain(optax.clip_by_global_norm(hyper.clip_norm), optax.adamw(rate, weight_decay=hyper.weight_decay))


def sgd(hyper: Hyper) -> optax.GradientTransformation:
    """Clipping, then plain gradient descent."""
    return optax.chain(optax.clip_by_global_norm(hyper.clip_norm), optax.sgd(hyper.learning_rate))


@dataclass(frozen=True)
class Recipe:
    """The static side of a run.

    Attributes:
        model: a ``Model``.
        loss: (ys, targets) -> scalar, such as ``cross_entropy`` or ``squared_error``.
        optimizer: a function of ``Hyper`` that builds an optax transformation inside the compiled chunk, such as
            ``adam``, ``sgd`` or ``functools.partial(adam, total_steps=1000)``.
        batch_size: samples a step; at least 1, and no more than there are.
    """

    model: Model
    loss: Loss = cross_entropy
    optimizer: Optimizer = adam
    batch_size: int = 32

    def __post_init__(self) -> None:
        checks.check_size("batch_size", self.batch_size)
        if not callable(self.loss):
            example = "mgu_jax.losses.cross_entropy"
            raise TypeError(f"loss must be a function, such as {example}; got {checks.describe(self.loss)}.")
        if not callable(self.optimizer):
            example = "lambda hyper: optax.adam(hyper.learning_rate)"
            raise TypeError(
                f"optimizer must be a function of Hyper, such as {example}; got {checks.describe(self.optimizer)}."
            )


def start(recipe: Recipe, key: Array, hyper: Hyper = Hyper()) -> TrainState:
    """The state before the first step. All that is random in a run comes from ``key``."""
    checks.check_key("key", key)
    init_key, data_key = jax.random.split(key)
    params = recipe.model.init(init_key, forget_bias=hyper.forget_bias, initial_scale=hyper.initial_scale)
    opt_state = recipe.optimizer(hyper).init(params)
    return TrainState(jnp.int32(0), params, opt_state, data_key)


def _time_first(ys: Array, targets: Array) -> Array:
    """targets as ys has them: a model that reads out every step gives [T, B, K]."""
    return targets.swapaxes(0, 1) if ys.ndim == 3 and targets.ndim > 1 else targets


def _batches(key: Array, first: Array, steps: int, batch_size: int, samples: int) -> Array:
    """Which samples the steps first, first + 1, ... use, [steps, B]: a new shuffle every epoch, its rest left out."""
    per_epoch = samples // batch_size
    epochs = first // per_epoch + jnp.arange((steps - 1) // per_epoch + 2, dtype=jnp.int32)
    orders = jax.vmap(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), samples))(epochs)
    which = first + jnp.arange(steps, dtype=jnp.int32)
    columns = (which % per_epoch * batch_size)[:, None] + jnp.arange(batch_size, dtype=jnp.int32)[None]
    return orders[(which // per_epoch - epochs[0])[:, None], columns]


@partial(jax.jit, static_argnames=("recipe", "steps"))
def chunk(state: TrainState, hyper: Hyper, data: Data, *, recipe: Recipe, steps: int) -> tuple[TrainState, Array]:
    """K = steps optimiser steps in one compiled loop.

    Returns:
        The new state and the losses [K] of the batches, each taken before its update.
    """
    optimizer = recipe.optimizer(hyper)
    batches = _batches(state.key, state.step, steps, recipe.batch_size, len(data.xs))

    def loss(params: ModelParams, batch: Data) -> Array:
        ys = recipe.model.apply(params, batch.xs.swapaxes(0, 1))
        return recipe.loss(ys, _time_first(ys, batch.targets))

    def body(state: TrainState, rows: Array) -> tuple[TrainState, Array]:
        batch = Data(*(a[rows] for a in data))
        value, gradient = jax.value_and_grad(loss)(state.params, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, state.key), value

    return lax.scan(body, state, batches)


@partial(jax.jit, static_argnames=("model", "metrics"))
def _evaluate(params: ModelParams, data: Data, model: Model, metrics: tuple[Loss, ...]) -> list[Array]:
    ys = model.apply(params, data.xs.swapaxes(0, 1))
    return [metric(ys, _time_first(ys, data.targets)) for metric in metrics]


def evaluate(
    model: Model, params: ModelParams, data: Data, metrics: tuple[Loss, ...], batch_size: int = 1000
) -> list[float]:
    """Each metric's mean over all samples, a batch at a time so that memory stays bounded."""
    check_data(data, 1)
    checks.check_size("batch_size", batch_size)
    metrics, samples, totals = tuple(metrics), len(data.xs), np.zeros(len(metrics))
    for i in range(0, samples, batch_size):
        part = Data(*(a[i : i + batch_size] for a in data))
        totals += len(part.xs) * np.array(_evaluate(params, part, model, metrics), np.float64)
    return list(totals / samples)


def check_data(data: Any, batch_size: int) -> None:
    """Raises: TypeError, ValueError for data that are empty, uneven, or fewer than a batch."""
    if not isinstance(data, Data):
        raise TypeError(f"data must be a Data(xs, targets); got {checks.describe(data)}.")
    for name, value in data._asdict().items():
        if not isinstance(value, jax.Array | np.ndarray):
            raise TypeError(f"data.{name} must be an array; got {checks.describe(value)}.")
    if data.xs.ndim != 3:
        raise ValueError(f"data.xs must have shape [N, T, D]; got {list(data.xs.shape)}.")
    if data.targets.shape[:1] != data.xs.shape[:1]:
        shape = list(data.targets.shape)
        raise ValueError(f"data.targets must have {len(data.xs)} samples, as data.xs; got shape {shape}.")
    if len(data.xs) < batch_size:
        raise ValueError(f"data must have at least as many samples as a batch, {batch_size}; got {len(data.xs)}.")


class NotFinite(RuntimeError):
    """Training stopped, since something was not finite. ``step`` is where, ``state`` the last good state."""

    def __init__(self, what: str, step: int, state: TrainState):
        super().__init__(f"{what} at step {step}; the last good state is that of step {int(state.step)}.")
        self.step, self.state = step, state


@jax.jit
def _all_finite(tree: Any) -> Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def fit(
    recipe: Recipe,
    data: Data,
    *,
    steps: int,
    key: Array,
    hyper: Hyper = Hyper(),
    state: TrainState | None = None,
    chunk_steps: int = 100,
    on_chunk: Callable[[TrainState, np.ndarray], str | None] | None = None,
    progress: bool = False,
) -> tuple[TrainState, np.ndarray]:
    """Train for a number of steps, a chunk at a time.

    Args:
        recipe: the static side of the run.
        data: the training samples; they are put on the device once.
        steps: the number of the last step, counted from the start of the run, also of one that resumes.
        key: the run's seed; unused where state is given.
        hyper: the traced side of the run.
        state: continue from here, with the same chunk_steps to the same bits; a fresh ``start`` if ``None``.
        chunk_steps: optimiser steps between two returns to the host.
        on_chunk: called after every chunk with the state and the chunk's losses; evaluates, logs, saves. A text that
            it returns stands beside the progress.
        progress: show a bar on a terminal, a plain line a chunk elsewhere (needs the extra ``experiments``).

    Returns:
        The final state, and the losses of the steps taken here.

    Raises:
        NotFinite: a loss was nan or infinite, or a parameter after a chunk.
        TypeError, ValueError: arguments of another kind, unusable data, or fewer samples than a batch.
    """
    for name, value, kind in (("recipe", recipe, Recipe), ("hyper", hyper, Hyper)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}; got {checks.describe(value)}.")
    if state is not None and not isinstance(state, TrainState):
        raise TypeError(f"state must be a TrainState; got {checks.describe(state)}.")
    check_data(data, recipe.batch_size)
    checks.check_size("steps", steps)
    checks.check_size("chunk_steps", chunk_steps)
    reached: TrainState = start(recipe, key, hyper) if state is None else state
    data, hyper = jax.device_put(data), Hyper(*map(jnp.asarray, hyper))
    done, losses = int(reached.step), []
    if done > steps:
        raise ValueError(f"steps must be at least the {done} that state has done; got {steps}.")
    with Progress(done, steps, progress) as shown:
        while done < steps:
            # Chunks end at multiples of chunk_steps, wherever the run began.
            size = min(chunk_steps - done % chunk_steps, steps - done)
            new_state, new_losses = chunk(reached, hyper, data, recipe=recipe, steps=size)
            new_losses = np.asarray(new_losses)
            bad = np.flatnonzero(~np.isfinite(new_losses))
            if bad.size:
                raise NotFinite(f"the loss must stay finite; it is {new_losses[bad[0]]}", done + int(bad[0]), reached)
            if not _all_finite(new_state.params):  # the last update's doing, which no loss has seen yet
                raise NotFinite("the parameters must stay finite; they are not", done + size, reached)
            reached, done = new_state, done + size
            losses.append(new_losses)
            shown.advance(size, float(new_losses[-1]), on_chunk(reached, new_losses) if on_chunk else None)
    return reached, np.concatenate(losses) if losses else np.zeros(0, np.float32)
