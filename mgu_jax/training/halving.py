"""Successive halving: a sweep that spends its steps on the settings that do well."""

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from mgu_jax import checks
from mgu_jax.training.data import Data, Source, Stream
from mgu_jax.training.fit import check_fit
from mgu_jax.training.optimizers import Hyper
from mgu_jax.training.settings import settings
from mgu_jax.training.step import Recipe
from mgu_jax.training.sweep import Sweep, sweep
from mgu_jax.training.sweep import begin as begin_sweep
from mgu_jax.training.validation import Validation


class Halving(NamedTuple):
    """All that changes in a successive halving: the sweep over the settings that are left, and which these are."""

    sweep: Sweep
    left: np.ndarray  # [N], numbers in hyper


def _check(hyper: Any, keys: Any, rungs: Any, validation: Any, keep: Any) -> None:
    checks.check_keys("keys", keys)
    if not isinstance(hyper, Hyper):
        raise TypeError(f"hyper must be a Hyper; got {checks.describe(hyper)}.")
    whole = isinstance(rungs, tuple | list) and all(type(steps) is int and steps > 0 for steps in rungs)
    if not whole or not rungs or list(rungs) != sorted(set(rungs)):
        raise ValueError(f"rungs must be steps that rise, at least one; got {rungs!r}.")
    if not checks.is_number(keep) or not 0 < keep < 1:
        raise ValueError(f"keep must be a share between 0 and 1; got {keep!r}.")
    if not isinstance(validation, Validation):  # that of a sweep may be None
        raise TypeError(f"validation must be a Validation; got {checks.describe(validation)}.")


def _left(count: int, rung: int, keep: float) -> int:
    """How many of the settings are left on a rung."""
    # Rounded, since 0.28 * 25 is a little above 7.
    return count if not rung else math.ceil(round(keep * _left(count, rung - 1, keep), 9))


def begin(
    recipe: Recipe,
    *,
    hyper: Hyper,
    keys: Array,
    rungs: tuple[int, ...],
    validation: Validation,
    keep: float = 0.5,
    step: int = 0,
) -> Halving:
    """The state before the first step; with a later step, what a checkpoint of this step is restored like."""
    _check(hyper, keys, rungs, validation, keep)
    hyper, count = settings(hyper)
    left = np.arange(_left(count, bisect_left(rungs, step), keep))
    return Halving(begin_sweep(recipe, jax.tree.map(lambda a: a[left], hyper), keys, validation), left)


def halving(
    recipe: Recipe,
    data: Data | Stream | Source,
    *,
    hyper: Hyper,
    keys: Array,
    rungs: tuple[int, ...],
    validation: Validation,
    keep: float = 0.5,
    state: Halving | None = None,
    devices: int = 1,
    on_call: Callable[[Halving, np.ndarray, dict[str, np.ndarray]], str | None] | None = None,
    **options: Any,
) -> tuple[Sweep, Hyper, np.ndarray]:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): after each rung the better settings go on.

    Args:
        recipe, data, hyper, keys, validation, devices, options: as ``sweep`` takes them. Where fewer settings are left
            than devices divide, as many devices as do.
        rungs: the steps after which settings are dropped, and at last the step at which the rest ends.
        keep: the share of the settings that goes on, rounded up; what counts is the mean of a setting's best scores.
        state: continue from here, one that ``on_call`` was given, to the same bits.
        on_call: as ``sweep`` calls it, with the state, which has fewer members from rung to rung. So it is restored
            like ``begin(..., step=checkpoints.steps[-1])`` of this file.

    Returns:
        The state of those that reached the end, their settings, and their numbers in ``hyper``.

    Raises:
        TypeError, ValueError: as ``sweep`` does; rungs that do not rise; a state of another halving.
    """
    _check(hyper, keys, rungs, validation, keep)
    check_fit(recipe, data, hyper, rungs[-1], options.get("steps_per_call", 100), validation, options.get("on_call"))
    checks.check_size("devices", devices)
    if jax.process_count() > 1:
        raise ValueError(f"halving must run in one process; got {jax.process_count()}.")
    (hyper, count), seeds, first, reached = settings(hyper), len(keys), 0, None
    left = np.arange(count)
    if state is not None:
        if not isinstance(state, Halving):
            raise TypeError(f"state must be a Halving, as on_call is given it; got {checks.describe(state)}.")
        reached, left = state
        first = bisect_left(rungs, int(reached.step))
        if first == len(rungs) or len(left) != _left(count, first, keep) or max(left) >= count:
            raise ValueError(f"state must be one of {count} settings with rungs {rungs}; it is not.")
    for i, steps in enumerate(rungs[first:], first):
        reached, _ = sweep(
            recipe,
            data,
            hyper=jax.tree.map(lambda a, left=left: a[left], hyper),
            keys=keys,
            steps=steps,
            state=reached,
            validation=validation,
            # Those that are left need not divide as the whole did. What cannot be from the start, sweep says.
            devices=math.gcd(devices, len(left) * seeds) if i else devices,
            on_call=on_call and (lambda sweep, *rest, left=left: on_call(Halving(sweep, left), *rest)),
            **options,
        )
        if i + 1 < len(rungs):
            score = np.asarray(reached.members.best.score).reshape(-1, seeds).mean(1)
            order = np.argsort(-score if validation.higher_is_better else score, kind="stable")
            chosen = np.sort(order[: _left(count, i + 1, keep)])
            at = (chosen[:, None] * seeds + np.arange(seeds)).reshape(-1)
            left = left[chosen]
            there = jax.device_put((reached.members, reached.stopped), jax.devices()[0])
            reached = Sweep(reached.step, *jax.tree.map(lambda a, at=at: a[at], there))
    assert reached is not None
    return reached, jax.tree.map(lambda a: a[left], hyper), left
