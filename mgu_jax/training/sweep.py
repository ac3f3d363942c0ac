"""``sweep``: many runs in one compiled program, the loop of ``run_and_report`` under ``vmap`` over settings and seeds.

    N settings             a ``Hyper`` whose entries are [N], made by ``grid`` or ``draw``
    S seeds                PRNG keys [S]
    P parts of the data    ``Parts``; 1 for data that all members share
    N * S * P members      on one axis: member (n, s, p) is at (n * S + s) * P + p

A member whose loss or parameters are not finite is frozen in its last good state, and one whose patience is used up
stops in its last state. Where ``at_once`` divides the members into rounds, those that stopped are left out, and the
others fill fewer rounds; they have the same bits.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from mgu_jax import checks
from mgu_jax.training.batch import joined_parts, parts_of
from mgu_jax.training.data import Data, Parts, Source, Stream
from mgu_jax.training.devices import AXIS, map_members, mesh_of, on_own_devices, put, to_host
from mgu_jax.training.evaluate import Validation
from mgu_jax.training.hyper import Hyper, as_settings, per_member
from mgu_jax.training.identity import Identity, identity_of
from mgu_jax.training.loop import STEPS_PER_CALL, Job, Shown, Store, host_loop, joined, restored
from mgu_jax.training.parts import of_member, part_of_members
from mgu_jax.training.start import Sweep, check_train_state, improve, init_sweep, per_part, with_best
from mgu_jax.training.step import Recipe, TrainState, failed_at, run_and_report
from mgu_jax.training.wrappers import passed_over


class Member(NamedTuple):
    """One member taken out of a sweep."""

    setting: int
    seed: int
    hyper: Hyper
    score: float
    params: Any
    part: int = 0  # of the data


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
    part: Any = None,
    over: Any = None,
) -> tuple[TrainState, Array, Array, dict[str, Array]]:
    """``run_and_report`` of M members: the entries of members, stopped and hyper are [M, ...]; the data are shared.

    Args:
        members, stopped, hyper, data, recipe, steps, at_once, mesh: the state of the sweep, and how it is trained.
        part: of the data, for each member, [M]; ``None`` for data without parts.
        over: which members stopped early, bool [M]. They keep their state, as those that were frozen do, and are left
            out where ``at_once`` divides the members into rounds.

    Returns:
        The new members, the step at which each was frozen or -1, [M], and the losses and the auxiliary values, all of
        [M, steps].
    """
    over = stopped >= 0 if over is None else over | (stopped >= 0)

    def one(data: Any, member: tuple[TrainState, Array, Hyper, Any]) -> tuple[Any, Array, Array, dict[str, Array]]:
        state, stopped, hyper, part = member
        new, losses, others = run_and_report(state, hyper, of_member(data, part), recipe=recipe, steps=steps)
        failed = failed_at(losses, new.params, new.opt_state)
        stopped = jnp.where((stopped < 0) & (failed >= 0), state.step + failed, stopped)
        return jax.tree.map(partial(jnp.where, stopped < 0), new, state), stopped, losses, others

    reached = map_members(one, (members, stopped, hyper, part), data, at_once, mesh, over)

    def chosen(old: Array, new: Array) -> Array:
        return jnp.where(over.reshape(over.shape + (1,) * (new.ndim - 1)), old, new)

    new, at, losses, others = reached
    return jax.tree.map(chosen, members, new), chosen(stopped, at), losses, others


@on_own_devices
def sweep(
    recipe: Recipe,
    data: Data | Parts | Stream | Source,
    *,
    hyper: Hyper,
    keys: Array,
    steps: int,
    state: Sweep | None = None,
    checkpoints: Store | None = None,
    steps_per_call: int = STEPS_PER_CALL,
    validation: Validation | None = None,
    at_once: int | None = None,
    devices: int = 1,
    on_call: Callable[[Sweep, np.ndarray, dict[str, np.ndarray]], str | bool | None] | None = None,
    on_interrupt: str = "raise",
    progress: bool = False,
) -> tuple[Sweep, np.ndarray]:
    """The final state of a sweep of all settings with all seeds, trained in one program, and the losses of its steps.

    A sweep that was killed at any moment and is started again by the same line continues from its newest checkpoint to
    the same bits.

    Args:
        recipe, data, steps, steps_per_call, checkpoints, on_interrupt, progress: as ``fit`` takes them. The order of
            the samples follows from each member's key; a stream, and the batches of a function, are the same for all
            members, and every process makes them whole. Of P ``Parts``, each setting with each seed is trained on every
            part, and member i of the N * seeds * P members has part i % P.
        hyper: each entry is a number or [N].
        keys: PRNG keys [seeds], as ``jax.random.split(key, seeds)`` makes them.
        state: where to start if there is no checkpoint; ``mgu_jax.start(recipe, keys, hyper)`` if ``None``.
        validation: as ``fit`` takes it, on data that all members share or on the same number of parts;
            ``members.best`` holds the best parameters of each member. A member whose patience is used up stops, and
            ``members.step`` says when; it does not continue if the sweep resumes with more patience.
        at_once: members computed together on a device, in training and in validation; all if ``None``. Otherwise
            members that stopped cost nothing more: the others fill fewer rounds of ``at_once`` members.
        devices: the number of devices, over all processes, that the members are split over; it must divide their
            number.
        on_call: as ``fit`` calls it, with the losses [M, steps of the call] and, by name, the scores [M].

    Returns:
        The final state, and the losses [M, steps] of the steps taken here, nan after a member was frozen or stopped.
        The sweep ends early when that is so of all members.

    Raises:
        Damaged: the newest checkpoint cannot be restored.
        Locked: another process writes these checkpoints.
        TypeError: an argument of another type.
        ValueError: what ``fit`` raises, or entries of different lengths.
    """
    job = Job(recipe, data, hyper, steps, steps_per_call, validation, checkpoints, on_call, progress, on_interrupt)
    keys = checks.as_keys("keys", keys)
    return run_sweep(job, per_part(keys, job.parts), state, at_once, devices)


def run_sweep(
    job: Job, keys: Any, state: Sweep | None, at_once: int | None, devices: int, identity: Identity | None = None
) -> tuple[Sweep, np.ndarray]:
    """What ``sweep`` returns, for the keys [seeds * parts] of ``per_part``.

    ``identity`` is that of the run to which the sweep belongs; its own if ``None``.
    """
    recipe, validation = job.recipe, job.validation
    if at_once is not None:
        checks.check_size("at_once", at_once)
    (hyper, count), seeds = as_settings(job.hyper), len(keys)
    each, total = per_member(hyper, seeds), count * seeds
    mesh = mesh_of(devices, "members", total)
    identity = identity or identity_of("sweep", recipe, job.hyper, keys if state is None else None)
    if state is None:
        state = init_sweep(recipe, keys, hyper, validation)
    elif not isinstance(state, Sweep) or len(state.stopped) != total:
        came = f"one of {len(state.stopped)}" if isinstance(state, Sweep) else checks.describe(state)
        raise ValueError(f"state must be a Sweep of {total} members, {count} settings with {seeds} seeds; got {came}.")
    else:
        check_train_state(recipe, state.members, members=True)
        state = state._replace(members=with_best(state.members, validation, recipe))
    if validation is not None:
        params, one = jax.eval_shape(lambda tree: jax.tree.map(lambda a: a[0], tree), (state.members.params, each))
        validation.check(recipe, params, one)
    put_whole = partial(put, mesh=mesh)
    feed = job.feed(state.members.params, mesh, put_whole, recipe.batch_size)
    first = restored(job.checkpoints, state, identity)
    found = with_best(first.members, validation, recipe)
    members, stopped, each, part = put((found, first.stopped, each, part_of_members(job.data, total)), mesh, AXIS)
    first = Sweep(put_whole(first.step), members, stopped)
    reached, losses = host_loop(job, _Members(job, first, each, part, at_once, mesh), first, feed, identity)
    return reached, joined(losses) if losses else np.zeros((total, 0))


class _Members:
    """The members of a sweep, as the loop on the host sees them.

    After the last call, ``frozen`` says at which step each member was frozen, or -1, and ``over`` which members take no
    further steps. ``scores`` are those of the last validation, and ``settled`` says which of them remain as they are.
    """

    def __init__(self, job: Job, state: Sweep, hyper: Hyper, part: Any, at_once: int | None, mesh: Mesh | None):
        self.job, self.hyper, self.mesh, self.how = job, hyper, mesh, {"part": part, "at_once": at_once, "mesh": mesh}
        self.frozen = to_host(state.stopped)
        # One that stopped, in the run that the state comes from, has taken fewer steps than the sweep.
        self.over = (self.frozen >= 0) | (to_host(state.members.step) < int(state.step)) | self._impatient(state)
        self.scores: list[np.ndarray] = []
        self.settled = np.zeros_like(self.over)

    def _impatient(self, state: Sweep) -> np.ndarray:
        """Which members have used up their patience, bool [M]."""
        patience = self.job.validation and self.job.validation.patience
        return np.zeros(len(self.frozen), bool) if patience is None else to_host(state.members.best.waited) >= patience

    def is_over(self, state: Sweep) -> bool:
        return bool(self.over.all())

    def launch(self, state: Sweep, data: Any, size: int) -> tuple[TrainState, Array, list[Any]]:
        members, stopped, seen = state.members, state.stopped, []
        over = put(self.over, self.mesh, AXIS)
        for part, steps in parts_of(data, size):
            how = {"recipe": self.job.recipe, "steps": steps, "over": over} | self.how
            members, stopped, *losses_and_others = run_members(members, stopped, self.hyper, part, **how)
            seen.append(losses_and_others)
        return members, stopped, seen

    def collect(
        self, state: Sweep, launched: tuple[TrainState, Array, list[Any]], done: int, size: int
    ) -> tuple[Sweep, np.ndarray, dict[str, np.ndarray]]:
        members, stopped, seen = launched
        losses, others = joined_parts(to_host(seen))
        self.frozen = to_host(stopped)
        step, at = np.arange(done, done + size), self.frozen[:, None]
        losses = np.where(self.over[:, None] | ((at >= 0) & (step >= at)), np.nan, losses)
        others = {name: np.where(self.over, np.nan, values.mean(1)) for name, values in others.items()}
        self.over = self.over | (self.frozen >= 0)
        return Sweep(put(jnp.int32(done + size), self.mesh), members, stopped), losses, others

    def validate(self, state: Sweep) -> tuple[Sweep, dict[str, np.ndarray]]:
        validation: Any = self.job.validation
        evaluator, members = validation.evaluator(self.job.recipe), state.members
        params = members.params
        if self.job.recipe.evaluate_at is not None:
            params = _eval_params(members._replace(carry=None, best=None), recipe=self.job.recipe)
        settled = put(self.settled, self.mesh, AXIS)
        scores = evaluator.scores_of_members(params, self.hyper.rates(), skipped=settled, **self.how)
        if self.settled.any():
            scores = [np.where(self.settled, old, new) for old, new in zip(self.scores, scores, strict=True)]
        self.scores = scores
        members = improve(members, params, scores[0].astype(np.float32), ~self.over)
        members = put(members, self.mesh, AXIS)
        state = state._replace(members=members)
        self.over = self.settled = self.over | self._impatient(state)
        return state, dict(zip(validation.names, scores, strict=True))

    def show(self, state: Sweep, losses: np.ndarray, scores: dict[str, np.ndarray]) -> Shown:
        living, total, over = self.frozen < 0, len(self.frozen), int(np.sum(passed_over(state)))
        early = self.over & living
        notes = [] if living.all() else [f"{(~living).sum()} of {total} members frozen"]
        notes += [f"{early.sum()} of {total} members stopped early"] if early.any() else []
        notes += [f"{over} batch{'es' if over > 1 else ''} passed over"] if over else []
        last = losses[living, -1]
        good = last[np.isfinite(last)]
        loss = float(good.mean(dtype=np.float64)) if good.size else math.nan  # one that grows may overflow float32
        if not living.any():
            return Shown(loss, {}, ", ".join(notes))
        seen = {f"mean {name}": float(score[living].mean()) for name, score in scores.items()}
        validation: Any = self.job.validation
        for name, score in list(scores.items())[:1]:  # the one that decides
            known, higher = score[living & ~np.isnan(score)], validation.is_higher_better(self.job.recipe)
            seen[f"best {name}"] = float((np.max if higher else np.min)(known)) if known.size else math.nan
        return Shown(loss, seen, ", ".join(notes))


@partial(jax.jit, static_argnames="recipe")
def _eval_params(members: TrainState, recipe: Recipe) -> Any:
    return jax.vmap(recipe.eval_params)(members)


def _settings_of(state: Sweep, hyper: Hyper) -> tuple[Hyper, int]:
    """The settings with entries [N], and the number of seeds of each.

    Raises:
        ValueError: their number does not divide that of the members.
    """
    hyper, count = as_settings(hyper)
    total = len(state.stopped)
    if total % count:
        raise ValueError(f"hyper must hold the settings of the sweep, which divide its {total} members; got {count}.")
    return hyper, total // count


def member_rows(state: Sweep, hyper: Hyper) -> list[dict[str, Any]]:
    """One dictionary per member, for JSON: setting, seed, the numbers of the setting, best score, where it was frozen.

    A number that is not finite is ``None``, since JSON has no such numbers: no clipping, or no score before the member
    was frozen. With several processes, all of them must call this.
    """
    hyper, seeds = _settings_of(state, hyper)
    best, stopped, rows = state.members.best, to_host(state.stopped), []
    score, step = (None, None) if best is None else to_host((best.score, best.step))
    numbers = {name: np.asarray(value) for name, value in hyper._asdict().items() if value is not None}

    def finite(value: Any) -> float | None:
        return float(value) if np.isfinite(value) else None

    for i, at in enumerate(stopped):
        n, s = divmod(i, seeds)
        row: dict[str, Any] = {"setting": n, "seed": s} | {name: finite(value[n]) for name, value in numbers.items()}
        if score is not None and step is not None:
            row |= {"score": finite(score[i]), "best_step": int(step[i])}
        rows.append(row | {"frozen_at": int(at) if at >= 0 else None})
    return rows


def best_member(state: Sweep, hyper: Hyper, validation: Validation) -> Member:
    """The member with the best score, with its best parameters as an ordinary pytree.

    ``hyper`` and ``validation`` are those of the sweep. The scores of members on different parts of the data are hard
    to compare. If a rate of noise was swept, evaluate with it:
    ``mgu_jax.evaluate(model, member.params, data, metrics, zoneout=member.hyper.zoneout)``. With several processes, all
    of them must call this.

    Raises:
        TypeError: state is not a ``Sweep``, or validation is not a ``Validation``.
        ValueError: the sweep was not validated, no member has a score, or hyper does not fit the sweep.
    """
    if not isinstance(state, Sweep):
        raise TypeError(f"state must be a Sweep; got {checks.describe(state)}.")
    if not isinstance(validation, Validation):
        raise TypeError(f"validation must be the Validation of the sweep; got {checks.describe(validation)}.")
    best = state.members.best
    if best is None:
        raise ValueError("state must come from a sweep with a validation; got one without scores.")
    (hyper, seeds), score = _settings_of(state, hyper), to_host(best.score)
    if not np.isfinite(score).any():
        raise ValueError("state must hold a member with a score; all were frozen before their first validation.")
    i = int(np.argmax(np.where(np.isfinite(score), score if to_host(best.higher).all() else -score, -np.inf)))
    n, s = divmod(i, seeds)
    s, p = divmod(s, len(validation.data) if isinstance(validation.data, Parts) else 1)
    params = jax.tree.map(lambda a: a[i], to_host(best.params))
    return Member(n, s, jax.tree.map(lambda a: a[n], hyper), float(score[i]), params, p)
