"""The loop on the host around the compiled one, for a run and for a sweep alike.

    while steps remain:
        call the compiled loop; make the next batches while the device works
        wait for the losses; validate; call on_call; save a checkpoint; show the progress

What differs between a run and a sweep is a ``Runner``; what both are asked to do is a ``Plan``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax.sharding import Mesh

from mgu_jax import checks
from mgu_jax.training.batch import check_limits, limits_of, stack
from mgu_jax.training.data import check_data, check_stream
from mgu_jax.training.devices import put
from mgu_jax.training.evaluate import Validation
from mgu_jax.training.hyper import Hyper
from mgu_jax.training.progress import Progress
from mgu_jax.training.start import check_parts
from mgu_jax.training.step import Recipe

STEPS_PER_CALL = 100


class Store(Protocol):
    """What a run needs of ``mgu_jax.Checkpoints``."""

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The state of a step, the newest if ``None``; ``None`` if there is no checkpoint."""
        ...

    def save(self, step: int, state: Any) -> None:
        """Save the state of a step, in the background."""
        ...


@dataclass(frozen=True, eq=False)
class Plan:
    """What ``fit``, ``sweep`` and ``halving`` are all asked to do; ``fit`` describes the attributes.

    Raises:
        TypeError, ValueError: as ``fit`` does.
    """

    recipe: Recipe
    data: Any
    hyper: Hyper
    steps: int
    steps_per_call: int = STEPS_PER_CALL
    validation: Validation | None = None
    checkpoints: Store | None = None
    on_call: Callable[..., str | None] | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        recipe, data = self.recipe, self.data
        check_parts(recipe, self.hyper, self.validation)
        if self.checkpoints is not None and not hasattr(self.checkpoints, "restore"):
            rule = "checkpoints must be an mgu_jax.Checkpoints"
            raise TypeError(f"{rule}; got {checks.describe(self.checkpoints)}.")
        if self.on_call is not None and not callable(self.on_call):
            raise TypeError(f"on_call must be a function; got {checks.describe(self.on_call)}.")
        if recipe.window is not None:
            check_stream(data, recipe.batch_size, recipe.window)
        elif not callable(data):
            check_data(data, recipe.batch_size, " or a function of the step that returns one")
        checks.check_size("steps", self.steps)
        checks.check_size("steps_per_call", self.steps_per_call)
        if recipe.total_steps is not None and recipe.schedule != "constant" and self.steps > recipe.total_steps:
            rule = f"steps must be at most {recipe.total_steps}, the schedule's total_steps"
            raise ValueError(f"{rule}; got {self.steps}.")

    def size(self, done: int) -> int:
        """The steps of the next call. Calls end at multiples of steps_per_call, wherever the run resumed."""
        return min(self.steps_per_call - done % self.steps_per_call, self.steps - done)

    def feed(self, params: Any, mesh: Mesh | None, put_batches: Callable[[Any], Any], batch_size: int) -> Any:
        """A function (done) -> the data of the next call, on the devices.

        ``put_batches`` places what a source makes, batch_size samples per step in this process.
        """
        limits = limits_of((self.recipe.loss,), params)
        if callable(self.data):
            source: Any = self.data
            return lambda done: put_batches(stack(source, done, self.size(done), batch_size, limits))
        check_limits(self.data, limits)
        data = put(self.data, mesh)
        return lambda done: data


class Shown(NamedTuple):
    """What the progress shows of a call."""

    loss: float
    scores: dict[str, float]
    note: str = ""


class Runner(Protocol):
    """What the loop needs to know of a run or of a sweep."""

    def is_over(self, state: Any) -> bool:
        """Whether no further call is needed, even if steps remain."""
        ...

    def launch(self, state: Any, data: Any, size: int) -> Any:
        """Call the compiled loop for ``size`` steps, without waiting for it."""
        ...

    def collect(self, state: Any, launched: Any, done: int, size: int) -> tuple[Any, np.ndarray]:
        """Wait for the call: the new state, and the losses [..., size]. ``state`` is the one before it."""
        ...

    def validate(self, state: Any) -> tuple[Any, dict[str, Any]]:
        """The state with the best parameters so far, and the scores by name."""
        ...

    def show(self, losses: np.ndarray, scores: dict[str, Any]) -> Shown:
        """What the progress shows of these losses and scores."""
        ...


def host_loop(plan: Plan, runner: Runner, state: Any, feed: Callable[[int], Any]) -> tuple[Any, list[np.ndarray]]:
    """The state after the last step, and the losses of every call.

    ``on_call`` runs before the checkpoint is saved: what it writes about a step is there before the checkpoint of the
    step is. After a kill at any moment, the resumed run calls it for every step that no checkpoint covers, and skips
    none.

    Raises:
        ValueError: the state has done more steps than the plan.
    """
    done, all_losses, beside = int(state.step), [], ""
    if done > plan.steps:
        raise ValueError(f"steps must be at least {done}, the steps already done; got {plan.steps}.")

    def to_do(state: Any, done: int) -> bool:
        return done < plan.steps and not runner.is_over(state)

    ready = feed(done) if to_do(state, done) else None
    with Progress(done, plan.steps, plan.progress) as progress:
        while to_do(state, done):
            size, failure = plan.size(done), None
            launched = runner.launch(state, ready, size)
            try:
                ready = feed(done + size) if done + size < plan.steps else None
            except Exception as error:  # belongs to the next call; this one is completed and reported first
                failure = error
            state, losses = runner.collect(state, launched, done, size)
            done += size
            all_losses.append(losses)
            scores: dict[str, Any] = {}
            if plan.validation is not None and plan.validation.is_due(done, plan.steps_per_call, plan.steps):
                state, scores = runner.validate(state)
            text = plan.on_call(state, losses, scores) if plan.on_call else None
            if plan.checkpoints is not None:
                plan.checkpoints.save(done, state)
            shown = runner.show(losses, scores)
            beside = text or ", ".join(f"{name} {score:.4g}" for name, score in shown.scores.items()) or beside
            progress.advance(size, shown.loss, ", ".join(filter(None, (beside, shown.note))))
            if failure is not None and not runner.is_over(state):
                raise failure
    return state, all_losses


def restored(checkpoints: Store | None, like: Any) -> Any:
    """The newest checkpoint, or ``like``, the state to start from, if there is none."""
    state = None if checkpoints is None else checkpoints.restore(like)
    return like if state is None else state
