"""The data of a run: samples in shuffled batches, windows of one long stream, or batches that the host makes.

The batch of a step follows from the key and the number of the step alone, so a run that resumes sees the batches that
it would have seen without the interruption.

    Data      samples [N, T, ...] on the device, shuffled anew every epoch; those that do not fill a batch are left out
    Stream    one sequence of L steps, cut into B rows side by side and read from left to right in windows of T steps;
              the model's state is carried from window to window (truncated BPTT) and starts anew every epoch
    Source    a function of the number of the step, for data that do not fit on the device
    Parts     samples of which each member of a sweep has its own
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from mgu_jax import checks
from mgu_jax.layer.params import check_lengths, check_resets


class Data(NamedTuple):
    """Samples with their targets; the samples come first, and a batch is transposed to time first when it is used."""

    xs: Any  # [N, T, D], or tokens [N, T]
    # [N] or [N, K] for a model that reads out once, [N, T] or [N, T, K] for one that reads out every step; also a tuple
    # or dictionary of such arrays, for a loss of the user's own
    targets: Any
    lengths: Any = None  # [N], the number of valid steps of each sample; all T if None
    mask: Any = None  # bool [N, T]: false at a hole, a step that is left out; the state stays, and no loss counts it
    resets: Any = None  # bool [N, T]: true where a step starts from the model's first state, as a new episode does
    weights: Any = None  # [N] or, for a model that reads out every step, [N, T]: how much each counts in a loss


class Stream(NamedTuple):
    """One long sequence with a target for every step; a language model uses ``Stream(tokens[:-1], tokens[1:])``."""

    xs: Any  # [L, D], or tokens [L]
    targets: Any  # [L] or [L, K]
    mask: Any = None  # bool [L], as in ``Data``
    resets: Any = None  # bool [L]
    weights: Any = None  # [L]


class Stacked(NamedTuple):
    """The batches of the next steps, as a ``Source`` made them: all entries [steps, B, ...]."""

    batches: Data


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Parts:
    """Data of which each member of a sweep has its own part; ``parts[p]`` is the ``Data`` of part p.

    Attributes:
        data: all samples, as a ``Data`` [N, ...] of which ``samples`` chooses; a ``Data`` with entries [P, n, ...], the
            samples of P parts; or a list of ``Data``, one per part.
        samples: whole numbers below N, [P, n], or a list of P rows of them: which samples each part has. Parts may
            share samples. ``None`` in the other two cases.

    Parts of unequal sizes are filled up with a sample of weight zero, which no mean counts; a loss of your own must
    then take ``weights``. Shapes are checked where the parts are used, as those of ``Data``.
    """

    data: Any
    samples: Any = None

    def __len__(self) -> int:
        """P, the number of parts."""
        if self.samples is not None or (isinstance(self.data, list | tuple) and not isinstance(self.data, Data)):
            return len(self.data if self.samples is None else self.samples)
        return len(self.data.xs)

    def __getitem__(self, part: int) -> Data:
        """The ``Data`` of one part, as ``fit`` takes them."""
        if not -len(self) <= part < len(self):
            raise IndexError(f"part must be one of {len(self)} parts; got {part}.")
        if self.samples is None:
            cut = isinstance(self.data, Data)
            return jax.tree.map(lambda a: a[part], self.data) if cut else self.data[part]
        return jax.tree.map(lambda a: a[np.asarray(self.samples[part])], self.data)

    def __iter__(self) -> Iterator[Data]:
        return (self[part] for part in range(len(self)))


Source = Callable[[int], Data]  # step -> the Data of its batch, [B, ...]


def order(key: Array, first: Array, steps: int, batch_size: int, samples: int) -> Array:
    """The samples of the steps first, first + 1, ..., [steps, B], shuffled anew every epoch.

    An epoch leaves out the samples that do not fill a batch.
    """
    per_epoch = samples // batch_size
    epochs = first // per_epoch + jnp.arange((steps - 1) // per_epoch + 2, dtype=jnp.int32)
    orders = jax.vmap(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), samples))(epochs)
    which = first + jnp.arange(steps, dtype=jnp.int32)
    columns = (which % per_epoch * batch_size)[:, None] + jnp.arange(batch_size, dtype=jnp.int32)[None]
    return orders[(which // per_epoch - epochs[0])[:, None], columns]


def batch_index(data: Any, key: Array, first: Array, steps: int, batch_size: int, window: int | None) -> Any:
    """What ``take`` needs to find the batch of each of the next steps, as the input of a scan over them."""
    if isinstance(data, Stacked):
        return data.batches
    if isinstance(data, Stream):
        return (first + jnp.arange(steps, dtype=jnp.int32)) % windows(data, batch_size, window)
    samples = len(data.samples if isinstance(data, Parts) else data.xs)
    return order(key, first, steps, batch_size, samples)


def take(data: Any, index: Any, batch_size: int, window: int | None) -> Data:
    """The batch of one step, [B, T, ...]; ``index`` is its entry of ``batch_index``."""
    if isinstance(data, Stacked):
        return index
    if isinstance(data, Stream):
        rows = jax.tree.map(lambda a: side_by_side(a, batch_size), data)
        cut = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, index * window, window or 1, 1), rows)
        return Data(**cut._asdict())
    if isinstance(data, Parts):  # of one part, its samples [n]
        data, index = data.data, data.samples[index]
    return jax.tree.map(lambda a: a[index], data)


def side_by_side(a: Any, batch_size: int) -> Any:
    """The stream [L, ...] cut into rows, [B, L // B, ...]."""
    length = a.shape[0] // batch_size
    return a[: batch_size * length].reshape(batch_size, length, *a.shape[1:])


def windows(data: Stream, batch_size: int, window: int | None) -> int:
    """The number of windows in an epoch of a stream."""
    return data.xs.shape[0] // batch_size // (window or 1)


def check_data(data: Any, batch_size: int, others: str = "") -> Data:
    """The data in arrays that JAX knows, after a check that they fit together and fill at least one batch.

    Raises:
        TypeError: data is not a ``Data``, or one of its entries is not an array.
        ValueError: shapes do not fit together, or there are fewer samples than a batch.
    """
    if not isinstance(data, Data):
        if isinstance(data, Stream):
            raise TypeError("data must be a Data(xs, targets); got a Stream, which needs a recipe with a window.")
        raise TypeError(f"data must be a Data(xs, targets){others}; got {checks.describe(data)}.")
    data = as_arrays(data)
    if data.xs.ndim < 2:
        raise ValueError(f"data.xs must have shape [N, T, D], or [N, T] of tokens; got {list(data.xs.shape)}.")
    _check_targets(data, "samples")
    if data.lengths is not None:
        check_lengths(data.lengths, data.xs.shape[1], data.xs.shape[:1], "data.lengths", "data.xs")
    _check_marks(data, data.xs.shape[:2])
    if len(data.xs) < batch_size:
        raise ValueError(f"data must have at least {batch_size} samples, one batch; got {len(data.xs)}.")
    return data


def check_stream(data: Any, batch_size: int, window: int) -> Stream:
    """The same for a stream, which must have at least one window for every row. Raises as ``check_data`` does."""
    if not isinstance(data, Stream):
        raise TypeError(f"data must be a Stream(xs, targets) where window is given; got {checks.describe(data)}.")
    data = as_arrays(data)
    if data.xs.ndim < 1:
        raise ValueError("data.xs must have shape [L, D], or [L] of tokens; got [].")
    _check_targets(data, "steps")
    _check_marks(data, data.xs.shape[:1])
    if windows(data, batch_size, window) < 1:
        least = batch_size * window
        raise ValueError(f"data must have at least {least} steps, {batch_size} rows of {window}; got {len(data.xs)}.")
    return data


def as_arrays(data: Any) -> Any:
    """The data with each entry an array of numbers that JAX knows; targets may be a tuple or dictionary of them."""
    for name in ("xs", "targets"):
        if getattr(data, name) is None:
            raise TypeError(f"data.{name} must be an array; got None.")
    return data._replace(**{name: _numbers(f"data.{name}", value) for name, value in data._asdict().items()})


def _numbers(name: str, tree: Any) -> Any:
    """Each array of a tuple or dictionary, as ``checks.as_numbers`` gives it."""

    def one(path: Any, value: Any) -> Any:
        return None if value is None else checks.as_numbers(name + jax.tree_util.keystr(path), value)

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=lambda value: not isinstance(value, tuple | dict))


def _check_marks(data: Any, shape: tuple[int, ...]) -> None:
    """Check mask, resets and weights, which have one entry per step, or of weights per sample."""
    for name in ("mask", "resets"):
        check_resets(getattr(data, name), shape, "data.xs", f"data.{name}")
    weights = data.weights
    if weights is None:
        return
    if weights.shape not in (shape, shape[:1]):
        rule = f"{list(shape[:1])}, one per sample, or {list(shape)}" if len(shape) > 1 else f"{list(shape)}"
        raise ValueError(f"data.weights must have shape {rule}, one per step; got {list(weights.shape)}.")
    numbers = np.asarray(weights).astype(np.float64)
    odd = numbers[~((numbers >= 0) & (numbers < np.inf))]
    if odd.size:
        raise ValueError(f"data.weights must be finite and at least 0; got {odd.flat[0]}.")


def _check_targets(data: Any, what: str) -> None:
    for path, targets in jax.tree_util.tree_leaves_with_path(data.targets):
        if targets.shape[:1] != data.xs.shape[:1]:
            where, count = f"data.targets{jax.tree_util.keystr(path)}", len(data.xs)
            raise ValueError(f"{where} must have {count} {what}, as data.xs; got shape {list(targets.shape)}.")
