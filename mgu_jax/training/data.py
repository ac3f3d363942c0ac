"""What a training step sees: samples in shuffled batches, windows of one long stream, or batches that the host makes.

Which samples make the batch of a step follows from the key and the number of the step alone, so a run that resumes sees
what it would have seen.

    Data      [N, T, ...] on the device: a new shuffle every epoch, its rest left out
    Stream    one sequence of S steps, cut into B rows side by side and read in windows of T steps, from the left to the
              right; the model's state is carried from window to window (truncated BPTT), and begins anew every epoch
    Source    any function of the number of the step, for what does not fit on the device
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from mgu_jax import checks
from mgu_jax.layer.params import check_lengths


class Data(NamedTuple):
    """Samples first, as data sets come; a batch is turned to time first when it is drawn."""

    xs: Any  # [N, T, D], or tokens [N, T]
    targets: Any  # [N] or [N, K] for a model that reads out once, [N, T] or [N, T, K] for one that reads out every step
    lengths: Any = None  # [N], how many steps each sample has; all T if None


class Stream(NamedTuple):
    """One long sequence with a target for every step; ``Stream(tokens[:-1], tokens[1:])`` is a language model's."""

    xs: Any  # [S, D], or tokens [S]
    targets: Any  # [S] or [S, K]


class Stacked(NamedTuple):
    """The batches of the next steps, as a ``Source`` made them: all entries [steps, B, ...]."""

    batches: Data


Source = Callable[[int], Data]  # step -> the Data of its batch, [B, ...]


class Limits(NamedTuple):
    """How many tokens a model knows, and classes; ``None`` where it has none."""

    tokens: int | None = None
    classes: int | None = None


def order(key: Array, first: Array, steps: int, batch_size: int, samples: int) -> Array:
    """Which samples the steps first, first + 1, ... use, [steps, B]: a new shuffle every epoch, its rest left out."""
    per_epoch = samples // batch_size
    epochs = first // per_epoch + jnp.arange((steps - 1) // per_epoch + 2, dtype=jnp.int32)
    orders = jax.vmap(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), samples))(epochs)
    which = first + jnp.arange(steps, dtype=jnp.int32)
    columns = (which % per_epoch * batch_size)[:, None] + jnp.arange(batch_size, dtype=jnp.int32)[None]
    return orders[(which // per_epoch - epochs[0])[:, None], columns]


def rows(data: Any, key: Array, first: Array, steps: int, batch_size: int, window: int | None) -> Any:
    """What tells ``take`` the batch of each of the next steps, as the input of a scan over them."""
    if isinstance(data, Stacked):
        return data.batches
    if isinstance(data, Stream):
        return (first + jnp.arange(steps, dtype=jnp.int32)) % windows(data, batch_size, window)
    return order(key, first, steps, batch_size, len(data.xs))


def take(data: Any, row: Any, batch_size: int, window: int | None) -> Data:
    """The batch of one step, [B, T, ...]."""
    if isinstance(data, Stacked):
        return row
    if isinstance(data, Stream):
        return Data(
            *(lax.dynamic_slice_in_dim(side_by_side(a, batch_size), row * window, window or 1, 1) for a in data)
        )
    return jax.tree.map(lambda a: a[row], data)


def side_by_side(a: Any, batch_size: int) -> Any:
    """[S, ...] -> [B, S // B, ...]."""
    length = a.shape[0] // batch_size
    return a[: batch_size * length].reshape(batch_size, length, *a.shape[1:])


def windows(data: Stream, batch_size: int, window: int | None) -> int:
    """How many windows an epoch of a stream has."""
    return data.xs.shape[0] // batch_size // (window or 1)


def stack(source: Source, first: int, steps: int, batch_size: int, limits: Limits = Limits()) -> Stacked:
    """The batches of the next steps, from the host.

    Raises:
        TypeError, ValueError: something else than ``Data`` of batch_size samples.
    """
    made = [source(step) for step in range(first, first + steps)]
    for step, batch in enumerate(made, first):
        check_data(batch, batch_size)
        if len(batch.xs) != batch_size:
            raise ValueError(f"data must give {batch_size} samples, a batch, for step {step}; got {len(batch.xs)}.")
        check_limits(batch, limits)
    for step, batch in enumerate(made, first):
        for name, one, other in zip(Data._fields, made[0], batch, strict=True):
            if np.shape(one) != np.shape(other) or (one is None) != (other is None):
                came = f"{checks.describe(one)} for step {first} and {checks.describe(other)} for step {step}"
                raise ValueError(f"data must give batches of one shape; data.{name} is {came}.")
    return Stacked(jax.tree.map(lambda *parts: np.stack(parts), *made))


def check_data(data: Any, batch_size: int, others: str = "") -> None:
    """Samples that belong together, enough for a batch.

    Raises:
        TypeError: no ``Data``, or an entry that is no array.
        ValueError: data that are empty, uneven, or fewer than a batch.
    """
    if not isinstance(data, Data):
        if isinstance(data, Stream):
            raise TypeError("data must be a Data(xs, targets); got a Stream, which a recipe with a window reads.")
        raise TypeError(f"data must be a Data(xs, targets){others}; got {checks.describe(data)}.")
    _check_arrays(data)
    tokens = jnp.issubdtype(data.xs.dtype, jnp.integer)
    if data.xs.ndim != (2 if tokens else 3):
        wanted = "[N, T], of tokens" if tokens else "[N, T, D]"
        raise ValueError(f"data.xs must have shape {wanted}; got {list(data.xs.shape)}.")
    if data.targets.shape[:1] != data.xs.shape[:1]:
        shape = list(data.targets.shape)
        raise ValueError(f"data.targets must have {len(data.xs)} samples, as data.xs; got shape {shape}.")
    if data.lengths is not None:
        try:
            check_lengths(data.lengths, data.xs.shape[1], data.xs.shape[:1])
        except (TypeError, ValueError) as error:
            raise type(error)(f"data.{error}") from None
    if len(data.xs) < batch_size:
        raise ValueError(f"data must have at least as many samples as a batch, {batch_size}; got {len(data.xs)}.")


def check_stream(data: Any, batch_size: int, window: int) -> None:
    """A stream that is long enough for one window of every row. Raises as ``check_data`` does."""
    if not isinstance(data, Stream):
        raise TypeError(f"data must be a Stream(xs, targets) where window is given; got {checks.describe(data)}.")
    _check_arrays(data)
    if data.targets.shape[:1] != data.xs.shape[:1]:
        shape = list(data.targets.shape)
        raise ValueError(f"data.targets must have {len(data.xs)} steps, as data.xs; got shape {shape}.")
    if windows(data, batch_size, window) < 1:
        least = batch_size * window
        raise ValueError(f"data must have at least {least} steps, {batch_size} rows of {window}; got {len(data.xs)}.")


def _check_arrays(data: Any) -> None:
    for name, value in data._asdict().items():
        if value is not None and not isinstance(value, jax.Array | np.ndarray):
            raise TypeError(f"data.{name} must be an array; got {checks.describe(value)}.")
    if data.xs is None or data.targets is None:
        raise TypeError("data.xs and data.targets must be arrays; got None.")


def check_limits(data: Any, limits: Limits) -> None:
    """Tokens and labels, as whole numbers below how many there are; they are looked at once.

    Raises:
        ValueError: a number out of range, which would be taken for nan or, below zero, for another one.
    """
    lengths, as_samples = getattr(data, "lengths", None), isinstance(data, Data)
    for name, limit, of in (("xs", limits.tokens, "tokens"), ("targets", limits.classes, "outputs")):
        numbers = getattr(data, name)
        if limit is not None and jnp.issubdtype(numbers.dtype, jnp.integer):
            ends = lengths if as_samples and numbers.ndim == 2 else None
            checks.check_below(f"data.{name}", numbers, limit, f"the model's {of}", ends, time_axis=1)
