"""``fit``: the loop on the host around the compiled chunk. It validates, keeps the best, stops early, and reports."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mgu_jax import checks
from mgu_jax.training import data as feed
from mgu_jax.training.data import Data, Source, Stream
from mgu_jax.training.devices import AXIS, agreed, mesh_of, one_copy, put, put_parts
from mgu_jax.training.evaluate import limits_of
from mgu_jax.training.optimizers import Hyper, check_hyper
from mgu_jax.training.progress import Progress
from mgu_jax.training.step import Best, Recipe, TrainState, run_steps, start
from mgu_jax.training.validation import Validation, check_validation, scores_of, shown_scores


class NotFinite(RuntimeError):
    """Training stopped, since something was not finite. ``step`` is where, ``state`` the last good state."""

    def __init__(self, what: str, step: int, state: TrainState):
        super().__init__(f"{what} at step {step}; the last good state is that of step {int(state.step)}.")
        self.step, self.state = step, state


@jax.jit
def all_finite(tree: Any) -> Array:
    """One bool for all numbers of a pytree."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def check_fit(
    recipe: Any, data: Any, hyper: Any, steps: Any, steps_per_call: Any, validation: Any, on_call: Any
) -> None:
    """The arguments that ``fit`` and ``sweep`` share."""
    for name, value, kind in (("recipe", recipe, Recipe), ("hyper", hyper, Hyper)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}; got {checks.describe(value)}.")
    if validation is not None and not isinstance(validation, Validation):
        raise TypeError(f"validation must be a Validation; got {checks.describe(validation)}.")
    if on_call is not None and not callable(on_call):
        raise TypeError(f"on_call must be a function; got {checks.describe(on_call)}.")
    if recipe.window is not None:
        feed.check_stream(data, recipe.batch_size, recipe.window)
    elif not callable(data):
        feed.check_data(data, recipe.batch_size, " or a function of the step that makes one")
    checks.check_size("steps", steps)
    checks.check_size("steps_per_call", steps_per_call)
    check_hyper(hyper)
    if recipe.schedule != "constant" and steps > recipe.total_steps:  # pyright: ignore (such a schedule has its steps)
        raise ValueError(f"steps must be at most the schedule's total_steps, {recipe.total_steps}; got {steps}.")


@lru_cache(maxsize=64)
def _described(recipe: Recipe) -> dict[str, str]:
    return checks.leaf_specs("state", jax.eval_shape(partial(start, recipe), jax.random.key(0))._replace(best=None))


def check_state(recipe: Recipe, state: Any, members: bool = False) -> None:
    """A state to go on from is one of the recipe: of its model and its optimiser.

    Raises:
        TypeError, ValueError: it is not.
    """
    if not isinstance(state, TrainState):
        raise TypeError(f"state must be a TrainState; got {checks.describe(state)}.")
    one = state._replace(best=None)
    if members:
        one = jax.eval_shape(lambda tree: jax.tree.map(lambda a: a[0], tree), one)
    wanted, came = _described(recipe), checks.leaf_specs("state", one)
    for path in wanted | came:
        if wanted.get(path) != came.get(path):
            right, got = wanted.get(path, "nothing"), came.get(path, "nothing")
            raise ValueError(f"state must be one of the recipe, which has {right} at {path[1:]}; got {got}.")


def chunk_size(done: int, steps_per_call: int, steps: int) -> int:
    """Steps of the next chunk; chunks end at multiples of steps_per_call, wherever the run began."""
    return min(steps_per_call - done % steps_per_call, steps - done)


def fit(
    recipe: Recipe,
    data: Data | Stream | Source,
    *,
    steps: int,
    key: Array,
    hyper: Hyper = Hyper(),
    state: TrainState | None = None,
    steps_per_call: int = 100,
    validation: Validation | None = None,
    devices: int = 1,
    on_call: Callable[[TrainState, np.ndarray, dict[str, float]], str | None] | None = None,
    progress: bool = False,
) -> tuple[TrainState, np.ndarray]:
    """Train for a number of steps, a chunk at a time.

    Args:
        recipe: the static side of the run.
        data: ``Data``, put on the device once; a ``Stream`` if the recipe has a window; or a function of the number of
            the step that makes the ``Data`` of its batch on the host, while the device works on the chunk before. Of
            several processes each has the same data or stream, or a function that makes its own part of the batch.
        steps: the number of the last step, counted from the start of the run, also of one that resumes.
        key: the run's seed; unused where state is given.
        hyper: the traced side of the run.
        state: continue from here, to the same bits with the same steps_per_call and devices; ``start`` if ``None``.
        steps_per_call: optimiser steps between two returns to the host.
        validation: what to measure; the best parameters stand in the state's ``best`` then.
        devices: the samples of a batch are split over so many, which must divide the batch. The noise that they get
            depends on it.
        on_call: called after every chunk with the state, the chunk's losses, and the scores by name if the chunk was
            validated; logs, saves. A text that it returns stands beside the progress.
        progress: show a bar on a terminal, a plain line a chunk elsewhere (needs the extra ``experiments``).

    Returns:
        The final state, and the losses of the steps taken here: fewer than asked for where patience ended.

    Raises:
        NotFinite: a loss was nan or infinite, or a parameter after a chunk.
        TypeError, ValueError: arguments of another kind, unusable data, fewer samples than a batch, or more devices
            than there are.
    """
    check_fit(recipe, data, hyper, steps, steps_per_call, validation, on_call)
    for name, value in hyper._asdict().items():
        if value is not None and not checks.is_number(value):
            raise ValueError(
                f"hyper.{name} must be one number (mgu_jax.sweep takes several); got {checks.describe(value)}."
            )
    if state is not None:
        check_state(recipe, state)
    mesh = mesh_of(devices, "samples of a batch", recipe.batch_size)

    def placed(state: TrainState) -> TrainState:
        return put(state._replace(carry=None), mesh)._replace(carry=put(state.carry, mesh, AXIS))

    reached: TrainState = start(recipe, key, hyper) if state is None else state
    limits = limits_of((recipe.loss,), reached.params)
    check_validation(recipe, validation, one_copy(reached.params), hyper)
    if not callable(data):
        feed.check_limits(data, limits)
        data = put(data, mesh)
    if validation is not None and reached.best is None:
        reached = reached._replace(best=_unscored(reached, validation))
    reached, hyper = placed(reached), put(jax.tree.map(jnp.asarray, hyper), mesh)
    done, losses = int(reached.step), []
    if done > steps:
        raise ValueError(f"steps must be at least the {done} that state has done; got {steps}.")

    def batches(done: int) -> Any:
        if not callable(data):
            return data
        mine = recipe.batch_size * jax.local_device_count() // devices if jax.process_count() > 1 else recipe.batch_size
        part = feed.stack(data, done, chunk_size(done, steps_per_call, steps), mine, limits)
        return put_parts(part, mesh, None, AXIS)

    ready, failed, seen = batches(done) if done < steps else None, None, ""
    with Progress(done, steps, progress) as shown:
        while done < steps and not _out_of_patience(reached, validation):
            count = chunk_size(done, steps_per_call, steps)
            new_state, new_losses = run_steps(reached, hyper, ready, recipe=recipe, steps=count, mesh=mesh)
            finite = all_finite(new_state.params)  # awaited below, with the losses
            try:
                ready = batches(done + count) if done + count < steps else None  # while the device works
            except Exception as error:  # belongs to the next chunk; this one is looked at and reported first
                failed = error
            new_losses = np.asarray(new_losses)
            bad = np.flatnonzero(~np.isfinite(new_losses))
            if bad.size:
                raise NotFinite(f"the loss must stay finite; it is {new_losses[bad[0]]}", done + int(bad[0]), reached)
            if not finite:  # the last update's doing, which no loss has seen yet
                raise NotFinite("the parameters must stay finite; they are not", done + count, reached)
            reached, done = new_state, done + count
            losses.append(new_losses)
            scores: dict[str, float] = {}
            if validation is not None and validation.is_due(done, steps_per_call, steps):
                reached, scores = _validated(reached, recipe, validation, one_copy(hyper))
                reached = placed(reached)
            text = on_call(reached, new_losses, scores) if on_call else None
            seen = text or shown_scores(scores) or seen
            shown.advance(count, float(new_losses[-1]), seen)
            if failed is not None and not _out_of_patience(reached, validation):
                raise failed
    return reached, np.concatenate(losses) if losses else np.zeros(0, np.float32)


def begin(recipe: Recipe, key: Array, hyper: Hyper = Hyper(), validation: Validation | None = None) -> TrainState:
    """``start``, with the ``best`` that a run with this validation carries: what its checkpoints are restored like."""
    state = start(recipe, key, hyper)
    return state if validation is None else state._replace(best=_unscored(state, validation))


def _unscored(state: TrainState, validation: Validation) -> Best:
    worst = -np.inf if validation.higher_is_better else np.inf
    return Best(jnp.float32(worst), state.step, state.params, jnp.int32(0))


def _validated(
    state: TrainState, recipe: Recipe, validation: Validation, hyper: Hyper
) -> tuple[TrainState, dict[str, float]]:
    """The state with the best parameters so far, and the scores by the names of the metrics."""
    scores = scores_of(recipe, validation, one_copy(state.params), hyper)
    values = agreed([float(score) for score in scores.values()])
    best, score = state.best, np.float32(values[0])
    if score > best.score if validation.higher_is_better else score < best.score:
        best = Best(jnp.asarray(score), state.step, state.params, jnp.int32(0))
    else:
        best = best._replace(waited=best.waited + 1)
    return state._replace(best=best), dict(zip(scores, values, strict=True))


def _out_of_patience(state: TrainState, validation: Validation | None) -> bool:
    return validation is not None and validation.patience is not None and int(state.best.waited) >= validation.patience
