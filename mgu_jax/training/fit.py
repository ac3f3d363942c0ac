"""``fit``: one run. It validates, keeps the best parameters, stops early, saves checkpoints and reports."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from mgu_jax import checks
from mgu_jax.training.batch import joined_parts, parts_of
from mgu_jax.training.data import Data, Parts, Source, Stream
from mgu_jax.training.devices import AXIS, from_first_process, mesh_of, on_own_devices, one_copy, put, put_parts
from mgu_jax.training.evaluate import Validation
from mgu_jax.training.hyper import Hyper, check_one_setting
from mgu_jax.training.identity import identity_of
from mgu_jax.training.loop import STEPS_PER_CALL, Job, NotFinite, Shown, Store, host_loop, joined, restored
from mgu_jax.training.start import check_train_state, improve, init_state, with_best
from mgu_jax.training.step import Recipe, TrainState, failed_at, run_and_report
from mgu_jax.training.wrappers import passed_over


@on_own_devices
def fit(
    recipe: Recipe,
    data: Data | Stream | Source,
    *,
    steps: int,
    key: Array,
    hyper: Hyper = Hyper(),
    state: TrainState | None = None,
    checkpoints: Store | None = None,
    steps_per_call: int = STEPS_PER_CALL,
    validation: Validation | None = None,
    devices: int = 1,
    on_call: Callable[[TrainState, np.ndarray, dict[str, float]], str | bool | None] | None = None,
    on_interrupt: str = "raise",
    progress: bool = False,
) -> tuple[TrainState, np.ndarray]:
    """The final state of a run, and the losses of its steps.

    A run that was killed at any moment and is started again by the same line continues from its newest checkpoint to
    the same bits.

    Args:
        recipe: the static side of the run.
        data: ``Data``, which is put on the device once; a ``Stream`` if the recipe has a window; or a function of the
            step that returns the ``Data`` of its batch, called on the host while the device works on earlier steps;
            batches may differ in their number of time steps, as those of ``mgu_jax.by_length`` do.
            With several processes, each passes the same data or stream, or a function that returns its own share of
            the batch.
        steps: the number of the last step, counted from the start of the run even if the run resumes.
        key: the seed of a new run; a run that continues keeps its own.
        hyper: the numbers of the run.
        state: where to start if there is no checkpoint; ``mgu_jax.start(recipe, key, hyper)`` if ``None``. With the
            same steps_per_call and devices, a run that continues from a state of ``on_call`` has the same bits.
        checkpoints: an ``mgu_jax.Checkpoints``. The run continues from its newest checkpoint, and saves one after every
            call of the compiled loop. Steps, steps_per_call, data, validation data and devices may change in between.
        steps_per_call: optimiser steps in one call of the compiled loop.
        validation: what to measure; the state then holds the best parameters so far in ``best``.
        devices: the number of devices over which the samples of a batch are split; it must divide the batch. Noise
            depends on it.
        on_call: called after every call of the compiled loop, before its checkpoint is saved, with the state, the
            losses of the call, and by name the scores, if it was validated, and the means of what the recipe's loss
            returns beside itself. A text that it returns is shown beside the
            progress; if it returns ``True``, the run stops after this call, whose checkpoint is saved.
        on_interrupt: "raise" lets a KeyboardInterrupt (Ctrl-C) through, with the state and the losses of the complete
            calls as its attributes ``state`` and ``losses``; "return" returns them.
        progress: show a bar on a terminal, one plain line per call elsewhere (needs the extra ``experiments``).

    Returns:
        The final state, and the losses of the steps taken here; fewer than ``steps`` if the run resumed, or if
        patience, ``on_call`` or an interrupt ended it. The loss of a batch that was passed over may be nan.

    Raises:
        NotFinite: a loss, or a parameter after a call, was nan or infinite, and the recipe's optimiser passed over no
            batch, or too many in a row.
        Damaged: the newest checkpoint cannot be restored.
        Locked: another process writes these checkpoints.
        TypeError: an argument of another type.
        ValueError: unusable data, fewer samples than a batch, more devices than are available, or a checkpoint of a run
            with another recipe, hyper or key.
    """
    for name, given in (("data", data), ("validation.data", getattr(validation, "data", None))):
        if isinstance(given, Parts):
            rule = f"{name} must be that of one run, such as {name}[0] (mgu_jax.sweep takes all parts)"
            raise TypeError(f"{rule}; got {len(given)} parts.")
    job = Job(recipe, data, hyper, steps, steps_per_call, validation, checkpoints, on_call, progress, on_interrupt)
    check_one_setting(hyper)
    if state is None:
        key = checks.as_key("key", key)
        identity = identity_of("fit", recipe, hyper, key)
        state = init_state(recipe, key, hyper)
    else:
        identity = identity_of("fit", recipe, hyper)
        check_train_state(recipe, state)
    mesh = mesh_of(devices, "samples of a batch", recipe.batch_size)
    if validation is not None:
        validation.check(recipe, one_copy(state.params), hyper)
    batch_size = recipe.batch_size
    if jax.process_count() > 1:
        batch_size = batch_size * jax.local_device_count() // devices
    feed = job.feed(state.params, mesh, partial(_put_batches, mesh=mesh), batch_size)
    runner = _Run(job, put(jax.tree.map(jnp.asarray, hyper), mesh), mesh)
    found = restored(checkpoints, with_best(state, validation, recipe), identity)
    first = runner.placed(with_best(found, validation, recipe))
    reached, losses = host_loop(job, runner, first, feed, identity)
    return reached, joined(losses)


_failed_at = jax.jit(failed_at)


@partial(jax.jit, static_argnames="recipe")
def _eval_params(state: TrainState, recipe: Recipe) -> Any:
    return recipe.eval_params(state)


def _put_batches(batches: Any, mesh: Mesh | None) -> Any:
    return put_parts(batches, mesh, None, AXIS)


class _Run:
    """One run, as the loop on the host sees it."""

    def __init__(self, job: Job, hyper: Hyper, mesh: Mesh | None):
        self.job, self.hyper, self.mesh = job, hyper, mesh

    def placed(self, state: TrainState) -> TrainState:
        """The state on the devices: whole on each, except for the rows of a stream."""
        return put(state._replace(carry=None), self.mesh)._replace(carry=put(state.carry, self.mesh, AXIS))

    def is_over(self, state: TrainState) -> bool:
        patience = self.job.validation and self.job.validation.patience
        return patience is not None and int(state.best.waited) >= patience

    def launch(self, state: TrainState, data: Any, size: int) -> tuple[TrainState, list[Any]]:
        seen = []
        for part, steps in parts_of(data, size):
            how = {"recipe": self.job.recipe, "steps": steps, "mesh": self.mesh}
            state, *losses_and_others = run_and_report(state, self.hyper, part, **how)
            seen.append(losses_and_others)
        return state, seen

    def collect(
        self, state: TrainState, launched: tuple[TrainState, list[Any]], done: int, size: int
    ) -> tuple[TrainState, np.ndarray, dict[str, float]]:
        new, (losses, others) = launched[0], joined_parts(jax.tree.map(np.asarray, launched[1]))
        failed = int(_failed_at(losses, new.params, new.opt_state))
        if failed == size:
            raise NotFinite("the parameters must stay finite; they are not", done + size, state, losses)
        if failed >= 0:
            what = f"the loss must stay finite; it is {losses[failed]}"
            raise NotFinite(what, done + failed, state, losses[: failed + 1])
        return new, losses, {name: float(np.mean(values)) for name, values in others.items()}

    def validate(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        validation: Any = self.job.validation
        evaluator = validation.evaluator(self.job.recipe)
        params = state.params
        if self.job.recipe.evaluate_at is not None:
            params = _eval_params(state._replace(carry=None, best=None), recipe=self.job.recipe)
        scores = from_first_process(evaluator.scores(one_copy(params), one_copy(self.hyper).rates()))
        state = improve(state, params, np.float32(scores[0]), True)
        return self.placed(state), dict(zip(validation.names, scores, strict=True))

    def show(self, state: TrainState, losses: np.ndarray, scores: dict[str, float]) -> Shown:
        good, over = losses[np.isfinite(losses)], passed_over(one_copy(state))
        note = f"{over} batch{'es' if over > 1 else ''} passed over" if over else ""
        return Shown(float(good[-1]) if good.size else math.nan, scores, note)
