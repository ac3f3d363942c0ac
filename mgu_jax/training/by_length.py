"""``by_length``: batches of samples of similar length, so that little time is spent on padding."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax import Array

from mgu_jax import checks
from mgu_jax.training.batch import reads_every_step
from mgu_jax.training.data import Data, check_data
from mgu_jax.training.step import Recipe

_POSITIONS = 256  # at most, among which the lengths of the batches are chosen


@dataclass(frozen=True, eq=False)
class ByLength:
    """What ``by_length`` returns: a function (step) -> the ``Data`` of its batch.

    Attributes:
        data: the samples, on the host.
        batch_size: samples per batch.
        key: the order follows from it.
        boundaries: the numbers of time steps that a batch can have, rising; the model is compiled once for each.
        every_step: whether targets and weights have one entry per step.
    """

    data: Data
    batch_size: int
    key: Array
    boundaries: tuple[int, ...]
    every_step: bool
    ragged: bool = field(default=True, init=False)  # each batch is a program of its own: see ``stack``
    _epochs: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    @property
    def per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return len(self.data.xs) // self.batch_size

    def __call__(self, step: int) -> Data:
        epoch, position = divmod(int(step), self.per_epoch)
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = self._order(epoch)
        rows, steps = self._epochs[epoch]
        which, T = rows[position], int(steps[position])

        def cut(name: str, a: Any) -> Any:
            a = a[which]
            timed = name in ("xs", "mask", "resets") or (self.every_step and name in ("targets", "weights"))
            return a[:, :T] if timed and a.ndim > 1 else a

        fields = self.data._asdict().items()
        return Data(**{name: jax.tree.map(lambda a, name=name: cut(name, a), value) for name, value in fields})

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples [batches, B] of an epoch, and the time steps [batches] of its batches."""
        lengths, bounds = np.asarray(self.data.lengths), np.asarray(self.boundaries)
        samples_key, batches_key = jax.random.split(jax.random.fold_in(self.key, epoch))
        count = self.per_epoch * self.batch_size
        rows = np.asarray(jax.random.permutation(samples_key, len(lengths)))[:count]
        bucket = np.searchsorted(bounds, lengths[rows])
        together = np.argsort(bucket, kind="stable")  # so that samples of one bucket stay in a random order
        rows, bucket = (a[together].reshape(-1, self.batch_size) for a in (rows, bucket))
        shuffled = np.asarray(jax.random.permutation(batches_key, self.per_epoch))
        return rows[shuffled], bounds[bucket.max(1)][shuffled]


def by_length(
    recipe: Recipe, data: Data, *, key: Array, buckets: int = 8, boundaries: tuple[int, ...] | None = None
) -> ByLength:
    """A source of batches whose samples have similar lengths, cut to them: what ``fit`` and ``sweep`` take as data.

    Every epoch shuffles the samples, sorts them into buckets, and shuffles the batches. As with ``Data``, samples that
    do not fill a batch are left out for the epoch. The batch of a step follows from the key and the number of the step,
    so a run that resumes has the same bits.

    Args:
        recipe: of the run; it has the batch size, and its model says whether there is one target per step.
        data: samples with lengths. They stay on the host.
        key: one PRNG key.
        buckets: how many different numbers of time steps the batches have. The model is compiled for each.
        boundaries: these numbers, rising, the last of them at least the longest length. ``None`` chooses those that
            leave the least padding.

    Raises:
        TypeError: an argument of another type.
        ValueError: data without lengths or with fewer samples than a batch, a recipe with a window, or boundaries that
            do not rise or are too short.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a Recipe; got {checks.describe(recipe)}.")
    if recipe.window is not None:
        raise ValueError(f"recipe.window must be None, since samples have no windows; got {recipe.window}.")
    data = check_data(data, recipe.batch_size)
    if data.lengths is None:
        raise ValueError("data.lengths must be given, one per sample; got None.")
    checks.check_key("key", key)
    checks.check_size("buckets", buckets)
    data = jax.tree.map(np.asarray, data)
    longest = max(1, int(data.lengths.max()))
    if boundaries is None:
        boundaries = _least_padding(data.lengths, buckets)
    whole = isinstance(boundaries, tuple | list) and all(isinstance(b, int | np.integer) for b in boundaries)
    if not whole or not boundaries or list(boundaries) != sorted(set(boundaries)) or boundaries[0] < 1:
        raise ValueError(f"boundaries must be rising numbers of steps, at least one; got {boundaries!r}.")
    if boundaries[-1] < longest:
        raise ValueError(f"boundaries must reach the longest length, {longest}; got {boundaries[-1]} as the last.")
    ends = tuple(min(int(b), data.xs.shape[1]) for b in boundaries)
    return ByLength(data, recipe.batch_size, key, tuple(dict.fromkeys(ends)), reads_every_step(recipe.model))


def _least_padding(lengths: np.ndarray, buckets: int) -> tuple[int, ...]:
    """The lengths, at most so many, to which the samples are padded with the fewest steps in all.

    least[j] is the least number of steps for all samples up to position j with some number of buckets; with one more,
    it is the minimum over i of least[i] and the samples between i and j, all padded to j.
    """
    longest = max(1, int(lengths.max()))
    grid = -(-longest // _POSITIONS)
    ends = np.unique(np.minimum(-(-np.maximum(lengths, 1) // grid) * grid, longest))
    below = np.searchsorted(np.sort(lengths), ends, side="right")  # samples up to each position
    between = below[None] - np.concatenate([[0], below])[:, None]  # [i, j]: after position i - 1, up to j
    cost = np.where(between >= 0, between * ends[None], 0).astype(float)
    cost[np.arange(len(ends) + 1)[:, None] > np.arange(len(ends))[None]] = np.inf
    least, before = cost[0], [np.zeros(len(ends), int)]
    for _ in range(min(buckets, len(ends)) - 1):
        every = np.concatenate([[0.0], least])[:, None] + cost
        before.append(every.argmin(0))
        least = every.min(0)
    chosen, j = [], len(ends)
    for step in reversed(before):
        if j:
            chosen.append(int(ends[j - 1]))
            j = int(step[j - 1])
    return tuple(reversed(chosen))
