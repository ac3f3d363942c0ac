"""Many runs in one compiled program: the chunk of ``train.py`` under ``vmap``, over settings and over seeds.

    N settings    a ``Hyper`` whose entries are [N], by ``grid`` or ``draw``
    S seeds       PRNG keys [S]
    N*S members   one axis, seeds of a setting side by side: what belongs to member (n, s) stands at n*S + s

A member whose loss or parameters are not finite is frozen in its last good state; it goes on in the program, since all
members are one, and changes nothing for its neighbours.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh

from mgu_jax import checks
from mgu_jax.training import data as feed
from mgu_jax.training.data import Data, Source, Stream
from mgu_jax.training.devices import AXIS, map_members, mesh_of, put, to_host
from mgu_jax.training.evaluate import Members, limits_of
from mgu_jax.training.fit import all_finite, check_fit, check_state, chunk_size
from mgu_jax.training.optimizers import Hyper
from mgu_jax.training.progress import Progress
from mgu_jax.training.settings import settings
from mgu_jax.training.step import Best, Recipe, TrainState, run_steps, start
from mgu_jax.training.validation import Validation, check_validation, scores_of, shown_scores


class Sweep(NamedTuple):
    """All that changes in a sweep of M members."""

    step: Array  # int32, how many steps are done
    members: TrainState  # every entry [M, ...]
    stopped: Array  # int32 [M]: the step at which a member was frozen; -1 of one that lives


class Member(NamedTuple):
    """One member of a sweep, taken out."""

    setting: int
    seed: int
    hyper: Hyper
    score: float
    params: Any


def per_member(hyper: Hyper, seeds: int) -> Hyper:
    """Settings with entries [N], as the members have them: [N*S]."""
    return jax.tree.map(lambda a: jnp.repeat(a, seeds), hyper)


@partial(jax.jit, static_argnames="recipe")
def _start(keys: Array, hyper: Hyper, recipe: Recipe) -> TrainState:
    # Not vmap: a model's init may hold what may not run twice at once, as in initial.py's _orthogonal.
    return lax.map(lambda member: start(recipe, *member), (keys, hyper))


def begin(recipe: Recipe, hyper: Hyper, keys: Array, validation: Validation | None = None) -> Sweep:
    """The state of a sweep before the first step; ``sweep`` says what the arguments are."""
    hyper, count = settings(hyper)
    total = count * len(keys)
    members = _start(jnp.tile(keys, count), per_member(hyper, len(keys)), recipe)
    if validation is not None:
        members = _unscored(members, validation)
    return Sweep(jnp.int32(0), members, jnp.full(total, -1, jnp.int32))


def _unscored(members: TrainState, validation: Validation) -> TrainState:
    worst = jnp.full_like(members.step, -jnp.inf if validation.higher_is_better else jnp.inf, jnp.float32)
    return members._replace(best=Best(worst, members.step, members.params, jnp.zeros_like(members.step)))


@partial(jax.jit, static_argnames=("recipe", "steps", "at_once", "mesh"))
def run_members(
    members: TrainState,
    stopped: Array,
    hyper: Hyper,
    data: Any,
    *,
    recipe: Recipe,
    steps: int,
    at_once: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Array, Array]:
    """``chunk`` for M members: all entries of members, stopped and hyper are [M, ...], data is shared.

    Returns:
        The new members, where each is frozen, [M], and the losses [M, K].
    """

    def one(data: Any, arguments: tuple[TrainState, Array, Hyper]) -> tuple[TrainState, Array, Array]:
        state, stopped, hyper = arguments
        new, losses = run_steps(state, hyper, data, recipe=recipe, steps=steps)
        good = jnp.isfinite(losses)
        fine = jnp.all(good) & all_finite(new.params)
        at = state.step + jnp.where(jnp.all(good), steps, jnp.argmin(good).astype(jnp.int32))
        stopped = jnp.where((stopped < 0) & ~fine, at, stopped)
        return jax.tree.map(partial(jnp.where, stopped < 0), new, state), stopped, losses

    return map_members(one, (members, stopped, hyper), data, at_once, mesh)


def _validated(
    members: TrainState, recipe: Recipe, validation: Validation, hyper: Hyper, living: Array, how: Members
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """The members with the best parameters of each so far, and the scores now, [M], by the names of the metrics."""
    scores = scores_of(recipe, validation, members.params, hyper, how)
    score, best = next(iter(scores.values())).astype(np.float32), members.best
    better = (score > best.score if validation.higher_is_better else score < best.score) & living
    new, old = Best(score, members.step, members.params, best.waited), best

    def chosen(a: Array, b: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return members._replace(best=jax.tree.map(chosen, new, old)), scores


def sweep(
    recipe: Recipe,
    data: Data | Stream | Source,
    *,
    hyper: Hyper,
    keys: Array,
    steps: int,
    state: Sweep | None = None,
    steps_per_call: int = 100,
    validation: Validation | None = None,
    at_once: int | None = None,
    devices: int = 1,
    on_call: Callable[[Sweep, np.ndarray, dict[str, np.ndarray]], str | None] | None = None,
    progress: bool = False,
) -> tuple[Sweep, np.ndarray]:
    """Train all settings with all seeds for a number of steps, in one program.

    Args:
        recipe, data, steps, steps_per_call, progress: as ``fit`` takes them. The order of the samples follows from each
            member's own key; a stream and the batches of a function are the same for all members, and made whole by
            every process.
        hyper: entries that are numbers, or [N].
        keys: PRNG keys [S], as ``jax.random.split(key, S)`` makes them.
        state: continue from here, to the same bits.
        validation: as ``fit`` takes it, without patience; the best parameters of each member stand in ``members.best``.
        at_once: members that are in a device's memory together, also while they are validated; all if ``None``.
        devices: the members are split over so many, those of all processes; their number must divide the members'.
        on_call: called after every chunk with the state, the losses [M, K], and the scores [M] by name if the chunk
            was validated.

    Returns:
        The final state, and the losses [M, steps] of the steps taken here, nan from where a member was frozen. Where
        all are frozen, it ends: with fewer steps than asked for.

    Raises:
        TypeError, ValueError: as ``fit`` does; entries of different lengths; more devices than there are.
    """
    check_fit(recipe, data, hyper, steps, steps_per_call, validation, on_call)
    if validation is not None and validation.patience is not None:
        raise ValueError(f"validation.patience must be None in a sweep; got {validation.patience}.")
    checks.check_keys("keys", keys)
    if at_once is not None:
        checks.check_size("at_once", at_once)
    (hyper, count), seeds = settings(hyper), len(keys)
    each, total = per_member(hyper, seeds), count * seeds
    mesh = mesh_of(devices, "members", total)
    if state is None:
        state = begin(recipe, hyper, keys, validation)
    elif not isinstance(state, Sweep) or len(state.stopped) != total:
        raise ValueError(f"state must be a Sweep of {total} members, {count} settings with {seeds} seeds; it is not.")
    else:
        check_state(recipe, state.members, members=True)
        if validation is not None and state.members.best is None:
            state = state._replace(members=_unscored(state.members, validation))
    how = Members(at_once, mesh)
    check_validation(recipe, validation, state.members.params, each, how)
    limits = limits_of((recipe.loss,), state.members.params)
    if not callable(data):
        feed.check_limits(data, limits)
    on_device = None if callable(data) else put(data, mesh)

    def batches(done: int, size: int) -> Any:
        if not callable(data):
            return on_device
        return put(feed.stack(data, done, size, recipe.batch_size, limits), mesh)

    members, stopped, each = put((state.members, state.stopped, each), mesh, AXIS)
    done, losses, means, frozen = int(state.step), [], "", to_host(stopped)
    if done > steps:
        raise ValueError(f"steps must be at least the {done} that state has done; got {steps}.")
    with Progress(done, steps, progress) as shown:
        while done < steps and (frozen < 0).any():
            size = chunk_size(done, steps_per_call, steps)
            ready = batches(done, size)
            members, stopped, new_losses = run_members(
                members, stopped, each, ready, recipe=recipe, steps=size, at_once=at_once, mesh=mesh
            )
            done, frozen = done + size, to_host(stopped)
            which = np.arange(done - size, done)
            new_losses = np.where((frozen[:, None] >= 0) & (which >= frozen[:, None]), np.nan, to_host(new_losses))
            losses.append(new_losses)
            scores: dict[str, np.ndarray] = {}
            if validation is not None and validation.is_due(done, steps_per_call, steps):
                members, scores = _validated(members, recipe, validation, each, stopped < 0, how)
            reached = Sweep(put(jnp.int32(done), mesh), members, stopped)
            text = on_call(reached, new_losses, scores) if on_call else None
            living = frozen < 0
            if scores and living.any():
                means = shown_scores({f"mean {name}": score[living].mean() for name, score in scores.items()})
            dead = "" if living.all() else f"{(~living).sum()} of {total} members frozen"
            loss = float(new_losses[living, -1].mean()) if living.any() else math.nan
            shown.advance(size, loss, ", ".join(filter(None, (text or means, dead))))
    reached = Sweep(put(jnp.int32(done), mesh), members, stopped)
    return reached, np.concatenate(losses, 1) if losses else np.zeros((total, 0))


def _seeds(state: Sweep, hyper: Hyper) -> tuple[Hyper, int]:
    """The settings, and how many seeds each has.

    Raises:
        ValueError: settings that cannot be those of the sweep.
    """
    hyper, count = settings(hyper)
    total = len(state.stopped)
    if total % count:
        raise ValueError(f"hyper must hold the settings of the sweep, whose {total} members they divide; got {count}.")
    return hyper, total // count


def rows(state: Sweep, hyper: Hyper) -> list[dict[str, Any]]:
    """The members as JSON has them: setting, seed, the numbers of the setting, best score, where it was frozen.

    A number that is not finite is ``None``, since JSON has none such: no clipping, or no score before the member froze.
    Of several processes, all have to call it.
    """
    hyper, seeds = _seeds(state, hyper)
    best, stopped, out = state.members.best, to_host(state.stopped), []
    score, step = (None, None) if best is None else to_host((best.score, best.step))
    named = {name: np.asarray(value) for name, value in hyper._asdict().items() if value is not None}

    def finite(value: Any) -> float | None:
        return float(value) if np.isfinite(value) else None

    for i, at in enumerate(stopped):
        n, s = divmod(i, seeds)
        row: dict[str, Any] = {"setting": n, "seed": s} | {name: finite(value[n]) for name, value in named.items()}
        if score is not None and step is not None:
            row |= {"score": finite(score[i]), "best_step": int(step[i])}
        out.append(row | {"frozen_at": int(at) if at >= 0 else None})
    return out


def best_member(state: Sweep, hyper: Hyper, validation: Validation) -> Member:
    """The member with the best score, and its best parameters as a pytree; hyper and validation are the sweep's.

    What stands in its ``hyper.zoneout`` belongs to the parameters: ``model.apply(params, xs, zoneout=...)``. Of several
    processes, all have to call it.

    Raises:
        TypeError: state is no ``Sweep``, or validation no ``Validation``.
        ValueError: the sweep was not validated, no member has a score, or settings that cannot be the sweep's.
    """
    if not isinstance(state, Sweep):
        raise TypeError(f"state must be a Sweep; got {checks.describe(state)}.")
    if not isinstance(validation, Validation):
        raise TypeError(f"validation must be that of the sweep; got {checks.describe(validation)}.")
    best = state.members.best
    if best is None:
        raise ValueError("state must be that of a sweep with a validation, which gives the scores; it has none.")
    (hyper, seeds), score = _seeds(state, hyper), to_host(best.score)
    if not np.isfinite(score).any():
        raise ValueError("state must hold a member with a score; all were frozen before their first validation.")
    i = int(np.argmax(np.where(np.isfinite(score), score if validation.higher_is_better else -score, -np.inf)))
    n, s = divmod(i, seeds)
    params = jax.tree.map(lambda a: a[i], to_host(best.params))
    return Member(n, s, jax.tree.map(lambda a: a[n], hyper), float(score[i]), params)
