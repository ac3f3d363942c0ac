"""``halving``: a sweep that spends its steps on the settings that do well."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from mgu_jax import checks
from mgu_jax.training.data import Data, Parts, Source, Stream
from mgu_jax.training.devices import on_own_devices
from mgu_jax.training.evaluate import Validation
from mgu_jax.training.hyper import Hyper, as_settings
from mgu_jax.training.identity import Identity, check_identity, identity_of
from mgu_jax.training.loop import STEPS_PER_CALL, Job, Store, said
from mgu_jax.training.start import Sweep, init_sweep, per_part
from mgu_jax.training.step import Recipe
from mgu_jax.training.sweep import run_sweep


class Halving(NamedTuple):
    """Everything that changes during a successive halving."""

    sweep: Sweep  # of the settings that are left
    left: np.ndarray  # [N], the positions of these settings in hyper


@on_own_devices
def halving(
    recipe: Recipe,
    data: Data | Parts | Stream | Source,
    *,
    hyper: Hyper,
    keys: Array,
    rungs: tuple[int, ...],
    validation: Validation,
    fraction: float = 0.5,
    state: Halving | None = None,
    checkpoints: Store | None = None,
    steps_per_call: int = STEPS_PER_CALL,
    at_once: int | None = None,
    devices: int = 1,
    on_call: Callable[[Halving, np.ndarray, dict[str, np.ndarray]], str | bool | None] | None = None,
    progress: bool = False,
) -> tuple[Sweep, Hyper, np.ndarray]:
    """The sweep of the settings that reach the last rung, these settings, and their positions in ``hyper``.

    Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) keeps the better settings after each rung. A
    halving that was killed at any moment and is started again by the same line continues from its newest checkpoint to
    the same bits.

    Args:
        recipe, data, hyper, keys, steps_per_call, validation, at_once, progress: as ``sweep`` takes them.
        rungs: the steps after which settings are dropped and, last, the step at which the halving ends.
        fraction: the fraction of the settings that is kept after a rung, rounded up. Settings are compared by the mean
            of their best scores, over seeds and parts of the data.
        state: where to start if there is no checkpoint, as ``on_call`` received it; the first step if ``None``.
        checkpoints: as ``fit`` takes it.
        devices: as ``sweep`` takes it. When fewer settings are left, as many of these devices as divide them are used.
        on_call: as ``sweep`` calls it, with a ``Halving``, whose members become fewer from rung to rung. If it returns
            ``True``, the halving stops, and the settings that are left then are returned.

    Raises:
        Damaged: the newest checkpoint cannot be restored.
        Locked: another process writes these checkpoints.
        TypeError: an argument of another type.
        ValueError: what ``sweep`` raises, rungs that do not rise, a state that does not fit, or a checkpoint of a
            halving with other rungs or another fraction.
    """
    keys = checks.as_keys("keys", keys)
    _check_rungs(rungs, fraction)
    if not isinstance(validation, Validation):  # a sweep may do without
        raise TypeError(f"validation must be a Validation; got {checks.describe(validation)}.")
    job = Job(recipe, data, hyper, rungs[-1], steps_per_call, validation, checkpoints, on_call, progress)
    checks.check_size("devices", devices)
    if jax.process_count() > 1:
        raise ValueError(f"halving must run in one process; got {jax.process_count()}.")
    keys = per_part(keys, job.parts)
    (hyper, count), seeds = as_settings(hyper), len(keys)
    reached, left, first, stopped = None, np.arange(count), 0, []
    if state is not None and not isinstance(state, Halving):
        raise TypeError(f"state must be a Halving, as on_call receives it; got {checks.describe(state)}.")
    parts = {"rungs": [*map(int, rungs)], "fraction": float(fraction)}
    identity = identity_of("halving", recipe, job.hyper, keys if state is None else None, **parts)
    newest = None if checkpoints is None else _newest(job, checkpoints, identity, rungs, fraction, hyper, keys)
    name, state = ("state", state) if newest is None else ("the checkpoint", newest)
    if state is not None:
        reached, left = state
        first = bisect_left(rungs, int(reached.step))
        if first == len(rungs) or len(left) != _left(count, first, fraction) or max(left) >= count:
            came = f"{len(left)} setting{'s' if len(left) > 1 else ''} at step {int(reached.step)}"
            raise ValueError(f"{name} must be one of {count} settings with rungs {rungs}; got {came}.")
    for i, steps in enumerate(rungs[first:], first):
        rung = replace(
            job,
            steps=steps,
            hyper=_at(hyper, left),
            checkpoints=None if checkpoints is None else _RungStore(checkpoints, left),
            on_call=on_call and partial(_call, on_call, left, stopped),
        )
        # Later rungs have fewer members. The first rung checks that devices divides all of them.
        used = math.gcd(devices, len(left) * seeds) if i else devices
        reached, _ = run_sweep(rung, keys, reached, at_once, used, identity)
        if stopped:
            break
        if i + 1 < len(rungs):
            chosen = _better(reached, seeds, _left(count, i + 1, fraction))
            reached, left = _members_of(reached, chosen, seeds), left[chosen]
    assert reached is not None
    return reached, _at(hyper, left), left


def _check_rungs(rungs: Any, fraction: Any) -> None:
    whole = isinstance(rungs, tuple | list) and all(type(steps) is int and steps > 0 for steps in rungs)
    if not whole or not rungs or list(rungs) != sorted(set(rungs)):
        raise ValueError(f"rungs must be a rising row of steps, at least one; got {rungs!r}.")
    if not checks.is_number(fraction) or not 0 < fraction < 1:
        raise ValueError(f"fraction must be a number between 0 and 1; got {checks.describe(fraction)}.")


def _left(count: int, rung: int, fraction: float) -> int:
    """The number of settings that are left on a rung."""
    # Rounded, since 0.28 * 25 is slightly above 7.
    return count if not rung else math.ceil(round(fraction * _left(count, rung - 1, fraction), 9))


def _at(hyper: Hyper, which: np.ndarray) -> Hyper:
    return jax.tree.map(lambda a: a[which], hyper)


def _newest(
    job: Job,
    checkpoints: Store,
    identity: Identity,
    rungs: tuple[int, ...],
    fraction: float,
    hyper: Hyper,
    keys: Array,
) -> Halving | None:
    """The newest checkpoint, if there is one. Its step determines how many settings it holds.

    Raises:
        Locked: another process writes these checkpoints.
        ValueError: it belongs to another run.
    """
    checkpoints.lock()
    checkpoints.wait()
    if not checkpoints.steps:
        return None
    step = checkpoints.steps[-1]
    check_identity(checkpoints.config(step), identity, step)
    left = np.arange(_left(len(hyper.learning_rate), bisect_left(rungs, step), fraction))
    like = Halving(init_sweep(job.recipe, keys, _at(hyper, left), job.validation), left)
    return checkpoints.restore(like, step)


class _RungStore:
    """The ``Store`` of the sweep of one rung: empty when the sweep starts, because ``halving`` restores by itself."""

    steps = ()

    def __init__(self, checkpoints: Store, left: np.ndarray):
        self.checkpoints, self.left = checkpoints, left

    def lock(self) -> None:
        self.checkpoints.lock()

    def config(self, step: int | None = None) -> None:
        return None

    def restore(self, like: Any, step: int | None = None) -> None:
        return None

    def save(self, step: int, state: Sweep, *, config: Any = None) -> None:
        self.checkpoints.save(step, Halving(state, self.left), config=config)

    def wait(self) -> None:
        self.checkpoints.wait()


def _call(on_call: Any, left: np.ndarray, stopped: list[Any], state: Sweep, *rest: Any) -> Any:
    """What ``on_call`` returns; a wish to stop is noted, since it stops all rungs."""
    answer = on_call(Halving(state, left), *rest)
    if said(answer)[1]:
        stopped.append(answer)
    return answer


def _better(state: Sweep, seeds: int, count: int) -> np.ndarray:
    """The positions, rising, of the settings with the best mean scores."""
    best: Any = state.members.best
    score = np.asarray(best.score).reshape(-1, seeds).mean(1)
    order = np.argsort(-score if np.asarray(best.higher).all() else score, kind="stable")
    return np.sort(order[:count])


def _members_of(state: Sweep, which: np.ndarray, seeds: int) -> Sweep:
    """The sweep of these settings alone, on one device."""
    at = (which[:, None] * seeds + np.arange(seeds)).reshape(-1)
    members, stopped = jax.device_put((state.members, state.stopped), jax.devices()[0])
    return Sweep(state.step, *jax.tree.map(lambda a: a[at], (members, stopped)))
