"""Successive halving: a sweep that spends its steps on the settings that do well."""

import math
from typing import Any

import jax
import numpy as np
from jax import Array

from mgu_jax.feed import Data, Source, Stream
from mgu_jax.optimizers import Hyper
from mgu_jax.settings import settings
from mgu_jax.sweep import Sweep, sweep
from mgu_jax.train import Recipe
from mgu_jax.validation import Validation


def halving(
    recipe: Recipe,
    data: Data | Stream | Source,
    *,
    hyper: Hyper,
    keys: Array,
    rungs: tuple[int, ...],
    validation: Validation,
    keep: float = 0.5,
    **options: Any,
) -> tuple[Sweep, Hyper, np.ndarray]:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): after each rung the better settings go on.

    Args:
        recipe, data, hyper, keys, validation, options: as ``sweep`` takes them.
        rungs: the steps after which settings are dropped, and at last the step at which the rest ends.
        keep: the share of the settings that goes on, rounded up; what counts is the mean of a setting's best scores.

    Returns:
        The state of those that reached the end, their settings, and their numbers in ``hyper``.
    """
    if not isinstance(rungs, tuple | list) or not rungs or list(rungs) != sorted(set(rungs)):
        raise ValueError(f"rungs must be steps that rise, at least one; got {rungs!r}.")
    if not 0 < keep < 1:
        raise ValueError(f"keep must be a share between 0 and 1; got {keep!r}.")
    if jax.process_count() > 1:
        raise ValueError(f"halving must run in one process; got {jax.process_count()}.")
    (hyper, count), seeds, state = settings(hyper), len(keys), None
    left, devices = np.arange(count), options.pop("devices", 1)
    for i, steps in enumerate(rungs):
        # Those that are left need not divide as the whole did. What cannot be from the start, sweep says.
        options["devices"] = math.gcd(devices, len(left) * seeds) if i else devices
        state, _ = sweep(
            recipe, data, hyper=hyper, keys=keys, steps=steps, state=state, validation=validation, **options
        )
        if i + 1 < len(rungs):
            score = np.asarray(state.members.best.score).reshape(-1, seeds).mean(1)
            order = np.argsort(-score if validation.higher_is_better else score, kind="stable")
            chosen = np.sort(order[: math.ceil(keep * len(left))])
            at = (chosen[:, None] * seeds + np.arange(seeds)).reshape(-1)
            left, hyper = left[chosen], jax.tree.map(lambda a, c=chosen: a[c], hyper)
            there = jax.device_put((state.members, state.stopped), jax.devices()[0])
            state = Sweep(state.step, *jax.tree.map(lambda a, at=at: a[at], there))
    assert state is not None
    return state, hyper, left
