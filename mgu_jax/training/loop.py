"""The loop on the host around the compiled one, for a run and for a sweep alike.

    while steps remain:
        call the compiled loop; make the next batches while the device works
        wait for the losses; validate; call on_call; save a checkpoint; show the progress

What differs between a run and a sweep is a ``Runner``; what both are asked to do is a ``Job``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from mgu_jax import checks
from mgu_jax.training.batch import check_limits, limits_of, parts_of, stack
from mgu_jax.training.data import Parts, check_data, check_stream
from mgu_jax.training.devices import put
from mgu_jax.training.evaluate import Validation
from mgu_jax.training.hyper import Hyper
from mgu_jax.training.identity import Identity, check_identity
from mgu_jax.training.parts import as_parts, check_count
from mgu_jax.training.progress import Progress
from mgu_jax.training.start import check_parts
from mgu_jax.training.step import Recipe

STEPS_PER_CALL = 100
OnCall = Callable[..., str | bool | None]


class NotFinite(RuntimeError):
    """The loss or a parameter was nan or infinite, and the batch was not passed over.

    Attributes:
        step: where.
        state: the last good state, that of the last call of the compiled loop before it.
        losses: those of all steps taken by this ``fit``, up to the one that is not finite.
    """

    def __init__(self, what: str, step: int, state: Any, losses: np.ndarray):
        super().__init__(f"{what} at step {step}; the last good state is that of step {int(state.step)}.")
        self.what, self.step, self.state, self.losses = what, step, state, losses

    def __reduce__(self) -> Any:  # pools of processes pickle errors
        return type(self), (self.what, self.step, self.state, self.losses)


@runtime_checkable
class Store(Protocol):
    """What a run needs of ``mgu_jax.Checkpoints``."""

    def lock(self) -> None:
        """Reserve the checkpoints for this process; raise Locked if another one writes them."""
        ...

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, in ascending order."""
        ...

    def config(self, step: int | None = None) -> Any:
        """The configuration that was saved with a step, the newest if ``None``; ``None`` if there is no checkpoint."""
        ...

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The state of a step, the newest if ``None``; ``None`` if there is no checkpoint."""
        ...

    def save(self, step: int, state: Any, *, config: Any = None) -> None:
        """Save the state and the configuration of a step, in the background."""
        ...

    def wait(self) -> None:
        """Return when the last save is done."""
        ...


@dataclass(frozen=True, eq=False)
class Job:
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
    on_call: OnCall | None = None
    progress: bool = False
    on_interrupt: str = "raise"

    def __post_init__(self) -> None:
        recipe, data = self.recipe, self.data
        check_parts(recipe, self.hyper, self.validation)
        if self.checkpoints is not None and not isinstance(self.checkpoints, Store):
            rule = "checkpoints must be an mgu_jax.Checkpoints"
            raise TypeError(f"{rule}; got {checks.describe(self.checkpoints)}.")
        if self.on_call is not None:
            if not callable(self.on_call):
                raise TypeError(f"on_call must be a function; got {checks.describe(self.on_call)}.")
            checks.check_takes("on_call", self.on_call, "on_call(state, losses, scores)", None, None, {})
        checks.check_choice("on_interrupt", self.on_interrupt, ("raise", "return"))
        if self.on_interrupt == "return" and jax.process_count() > 1:
            raise ValueError(f"on_interrupt must be 'raise' with several processes; got {self.on_interrupt!r}.")
        if recipe.window is not None:
            data = check_stream(data, recipe.batch_size, recipe.window)
        elif callable(data):
            checks.check_takes("data", data, "data(step)", 0)
        elif isinstance(data, Parts):
            data = as_parts(data, recipe.batch_size)
        else:
            data = check_data(data, recipe.batch_size, " or a function of the step that returns one")
        object.__setattr__(self, "data", data)
        if self.validation is not None:
            check_count("validation.data", self.validation.data, self.parts)
        checks.check_size("steps", self.steps)
        checks.check_size("steps_per_call", self.steps_per_call)
        if recipe.total_steps is not None and recipe.schedule != "constant" and self.steps > recipe.total_steps:
            rule = f"steps must be at most {recipe.total_steps}, the schedule's total_steps"
            raise ValueError(f"{rule}; got {self.steps}.")

    @property
    def parts(self) -> int:
        """The number of parts of the data; 1 of data that all members share."""
        return len(self.data) if isinstance(self.data, Parts) else 1

    def size(self, done: int) -> int:
        """The steps of the next call. Calls end at multiples of steps_per_call, wherever the run resumed."""
        return min(self.steps_per_call - done % self.steps_per_call, self.steps - done)

    def feed(self, params: Any, mesh: Mesh | None, put_batches: Callable[[Any], Any], batch_size: int) -> Any:
        """A function (done) -> the data of the next call, on the devices.

        ``put_batches`` places what a source makes, batch_size samples per step in this process.
        """
        limits, readout = limits_of((self.recipe.loss,), params), getattr(self.recipe.model, "readout", None)
        if callable(self.data):
            source: Any = self.data

            def batches(done: int) -> Any:
                made = stack(source, done, self.size(done), batch_size, limits)
                for part, _ in parts_of(made, 0):
                    checks.check_not_empty("data.lengths", part.batches.lengths, readout)
                return put_batches(made)

            return batches
        samples = self.data.data if isinstance(self.data, Parts) else self.data
        checks.check_not_empty("data.lengths", getattr(samples, "lengths", None), readout)
        check_limits(samples, limits)
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

    def collect(self, state: Any, launched: Any, done: int, size: int) -> tuple[Any, np.ndarray, dict[str, Any]]:
        """Wait for the call: the new state, the losses [..., size], and the means of the auxiliary values by name.

        ``state`` is the one before the call.
        """
        ...

    def validate(self, state: Any) -> tuple[Any, dict[str, Any]]:
        """The state with the best parameters so far, and the scores by name."""
        ...

    def show(self, state: Any, losses: np.ndarray, scores: dict[str, Any]) -> Shown:
        """What the progress shows of a state and of the losses and scores of the call that led to it."""
        ...


def host_loop(
    job: Job, runner: Runner, state: Any, feed: Callable[[int], Any], identity: Identity
) -> tuple[Any, list[np.ndarray]]:
    """The state after the last step, and the losses of every call. Each checkpoint is saved with the run's identity.

    ``on_call`` runs before the checkpoint is saved: what it writes about a step is there before the checkpoint of the
    step is. After a kill at any moment, the resumed run calls it for every step that no checkpoint covers, and skips
    none.

    Raises:
        KeyboardInterrupt: with ``state`` and ``losses`` of the calls that were complete, unless the job asks to return
            them.
        NotFinite: with the losses of all calls.
        TypeError: ``on_call`` returned something other than a text, a bool or ``None``.
        ValueError: the state has done more steps than the job has.
    """
    done, beside, stop = int(state.step), "", False
    if done > job.steps:
        raise ValueError(f"steps must be at least {done}, the steps already done; got {job.steps}.")
    all_losses: list[np.ndarray] = []
    complete = state, 0  # the state after the last complete call, and the number of these calls

    def to_do(state: Any, done: int) -> bool:
        return done < job.steps and not stop and not runner.is_over(state)

    try:
        ready = feed(done) if to_do(state, done) else None
        with Progress(done, job.steps, job.progress) as progress:
            while to_do(state, done):
                size, failure = job.size(done), None
                launched = runner.launch(state, ready, size)
                try:
                    ready = feed(done + size) if done + size < job.steps else None
                except Exception as error:  # belongs to the next call; this one is completed and reported first
                    failure = error
                state, losses, others = runner.collect(state, launched, done, size)
                done += size
                all_losses.append(losses)
                scores: dict[str, Any] = {}
                if job.validation is not None and job.validation.is_due(done, job.steps_per_call, job.steps):
                    state, scores = runner.validate(state)
                complete = state, len(all_losses)
                text, stop = said(job.on_call(state, losses, others | scores) if job.on_call else None)
                if job.checkpoints is not None:
                    job.checkpoints.save(done, state, config={"run": identity})
                shown = runner.show(state, losses, scores)
                seen = {name: value for name, value in others.items() if np.ndim(value) == 0} | shown.scores
                beside = text or ", ".join(f"{name} {score:.4g}" for name, score in seen.items()) or beside
                progress.advance(size, shown.loss, ", ".join(filter(None, (beside, shown.note))))
                if failure is not None and to_do(state, done):
                    raise failure
    except NotFinite as error:
        error.losses = joined([*all_losses, error.losses])
        raise
    except KeyboardInterrupt as error:
        state, calls = complete
        if job.on_interrupt == "return":
            return state, all_losses[:calls]
        error.state, error.losses = state, joined(all_losses[:calls])  # pyright: ignore (attributes of our own)
        raise
    return state, all_losses


def joined(losses: list[np.ndarray]) -> np.ndarray:
    """The losses of all calls, [steps], or [M, steps] of a sweep."""
    return np.concatenate(losses, -1) if losses else np.zeros(0, np.float32)


def said(answer: Any) -> tuple[str, bool]:
    """The text that ``on_call`` returned, and whether it asked to stop, by a bool of Python, NumPy or JAX.

    Raises:
        TypeError: it returned something else.
    """
    if answer is None or isinstance(answer, str):
        return answer or "", False
    if isinstance(answer, bool) or (checks.is_number(answer) and getattr(answer, "dtype", 0) == np.bool_):
        return "", bool(answer)
    raise TypeError(f"on_call must return a text, True to stop the run, or None; got {checks.describe(answer)}.")


def restored(checkpoints: Store | None, like: Any, identity: Identity) -> Any:
    """The newest checkpoint, after the checkpoints are locked; without one, ``like``, the state to start from.

    Raises:
        Locked: another process writes these checkpoints.
        ValueError: the checkpoint belongs to another run.
    """
    if checkpoints is None:
        return like
    checkpoints.lock()
    if (config := checkpoints.config()) is not None:  # which waits for the last save
        check_identity(config, identity, checkpoints.steps[-1])
    state = checkpoints.restore(like)
    return like if state is None else state
