"""``Parts`` in the one form that is computed with, and ``folds``, which cuts data into parts for cross-validation."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mgu_jax import checks
from mgu_jax.training.data import Data, Parts, as_arrays, check_data


def folds(
    data: Data | Parts, k: int, *, key: Array | None = None, validation: bool = False
) -> tuple[Parts, Parts] | tuple[Parts, Parts, Parts]:
    """Cross-validation: ``(train, held_out)``, the parts of k members, each with another fold of the samples held out.

    Args:
        data: the samples; or parts, such as those of P subjects. Each part is then cut by itself, and fold f of part p
            is at p * k + f.
        k: the number of folds. Sample i is in fold i % k; the folds differ by at most one sample in their sizes.
        key: one PRNG key. The samples are shuffled before they are cut, those of each part by themselves.
        validation: return ``(train, validation, test)``: fold f is for the test and the next one for the validation,
            such as early stopping, and only the others are trained on.

    Raises:
        TypeError: data is neither a ``Data`` nor ``Parts``, or key is not a PRNG key.
        ValueError: shapes that do not fit together; k below 2, or 3 with a validation; or a part of fewer than k
            samples.
    """
    checks.check_choice("validation", validation, (False, True))
    checks.check_size("k", k, 3 if validation else 2)
    pool, rows = _pooled(data if isinstance(data, Parts) else Parts([data]))
    if (least := min(map(len, rows))) < k:
        raise ValueError(f"data must have at least {k} samples in each part, one per fold; got {least}.")
    if key is not None:
        checks.check_key("key", key)
        drawn = np.asarray(jax.random.uniform(key, (len(rows), max(map(len, rows)))))
        rows = [row[np.argsort(number[: len(row)])] for row, number in zip(rows, drawn, strict=True)]
    cut = [[row[f::k] for f in range(k)] for row in rows]  # of each part, its folds

    def parts(*which: int) -> Parts:
        """Of fold f of each part, the folds f + which, counted around."""
        chosen = [np.concatenate([own[(f + i) % k] for i in which]) for own in cut for f in range(k)]
        return Parts(pool, np.stack(chosen) if len({*map(len, chosen)}) == 1 else chosen)

    if validation:
        return parts(*range(2, k)), parts(1), parts(0)
    return parts(*range(1, k)), parts(0)


def as_parts(parts: Parts, batch_size: int = 1) -> Parts:
    """The same parts as samples [P, n] of one ``Data`` in arrays that JAX knows, after a check that they fit together.

    Parts that are smaller than others are filled up with the last sample of the data, which is then one of weight zero.

    Raises:
        TypeError: data is neither a ``Data`` nor a list of them, or an entry is not an array.
        ValueError: shapes that do not fit together, or a part of fewer samples than a batch.
    """
    pool, rows = _pooled(parts)
    most = max(map(len, rows))
    if most < batch_size:
        raise ValueError(f"data must have at least {batch_size} samples in each part, one batch; got {most}.")
    if min(map(len, rows)) < most:
        N = len(pool.xs)
        weights = np.ones(N, np.float32) if pool.weights is None else np.asarray(pool.weights)
        pool = jax.tree.map(lambda a: np.concatenate([np.asarray(a), np.asarray(a[:1])]), pool._replace(weights=None))
        pool = pool._replace(weights=np.concatenate([weights, np.zeros_like(weights[:1])]))
        rows = [np.concatenate([row, np.full(most - len(row), N, np.int32)]) for row in rows]
    return Parts(pool, np.stack(rows))


def check_count(name: str, data: Any, parts: int) -> None:
    """Raise ValueError if data are ``Parts`` of another number than those of the training; ``Data`` are one for all."""
    if isinstance(data, Parts) and len(data) != parts:
        raise ValueError(f"{name} must have {parts} part{'s' if parts > 1 else ''}, as data; got {len(data)}.")


def part_of_members(data: Any, total: int) -> Any:
    """Which part each member of a sweep has, int32 [M]; ``None`` if all share the data.

    Raises:
        ValueError: the number of parts does not divide that of the members.
    """
    if not isinstance(data, Parts):
        return None
    if total % len(data):
        raise ValueError(f"data must have parts whose number divides the {total} members; got {len(data)}.")
    return jnp.arange(total, dtype=jnp.int32) % len(data)


def of_member(data: Any, part: Any) -> Any:
    """The data of one member: those of its part, still as samples of the data of all; all data without parts."""
    return Parts(data.data, data.samples[part]) if isinstance(data, Parts) else data


def whole(data: Any) -> Any:
    """The samples [n] of one part as a ``Data``; other data themselves."""
    return jax.tree.map(lambda a: a[data.samples], data.data) if isinstance(data, Parts) else data


def _pooled(parts: Parts) -> tuple[Data, list[np.ndarray]]:
    """All samples as one ``Data`` [N, ...], and the positions of those of each part. Raises as ``as_parts`` does."""
    data, samples = parts.data, parts.samples
    if isinstance(data, Data) and samples is not None:
        pool = check_data(data, 1)
        rows = [_positions(row, len(pool.xs)) for row in _rows_of(samples)]
        if not rows or not min(map(len, rows)):
            raise ValueError(f"data.samples must give each part at least one sample; got {checks.describe(samples)}.")
        return pool, rows
    if samples is not None:
        raise TypeError(f"data.samples must be None where data.data is not one Data; got {checks.describe(samples)}.")
    if isinstance(data, Data):
        data = as_arrays(data)
        P, n = _leading(data)
        pool = jax.tree.map(lambda a: a.reshape(P * n, *a.shape[2:]), data)
        return check_data(pool, 1), [*np.arange(P * n, dtype=np.int32).reshape(P, n)]
    if not isinstance(data, list | tuple) or not data:
        came = checks.describe(data)
        raise TypeError(f"data must be a Data(xs, targets), or Parts of one or of a list of them; got {came}.")
    each = [check_data(one, 1) for one in data]
    shapes = [jax.tree.map(lambda a: (jnp.dtype(a.dtype).name, *a.shape[1:]), one) for one in each]
    for p, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(f"data must have parts that differ in nothing but their sizes; got {p} unlike part 0.")
    pool = jax.tree.map(lambda *own: own[0] if len(own) == 1 else np.concatenate(own), *each)
    ends = np.cumsum([0, *(len(one.xs) for one in each)])
    return pool, [np.arange(a, b, dtype=np.int32) for a, b in itertools.pairwise(ends)]


def _leading(data: Data) -> tuple[int, int]:
    """P and n of data whose entries are [P, n, ...]."""
    if data.xs.ndim < 3:
        shape = list(data.xs.shape)
        raise ValueError(f"data.xs must have shape [P, n, T, D], or [P, n, T] of tokens, for parts; got {shape}.")
    P, n = data.xs.shape[:2]
    for path, a in jax.tree_util.tree_leaves_with_path(data):
        if a.shape[:2] != (P, n):
            where = f"data{jax.tree_util.keystr(path)}"
            raise ValueError(f"{where} must begin with the axes [{P}, {n}], as data.xs; got {list(a.shape)}.")
    return P, n


def _rows_of(samples: Any) -> list[Any]:
    if isinstance(samples, jax.Array | np.ndarray):
        if samples.ndim != 2:
            raise ValueError(f"data.samples must be [P, n] or a list of P rows; got {checks.describe(samples)}.")
        return [*np.asarray(samples)]
    if not isinstance(samples, list | tuple):
        raise TypeError(f"data.samples must be [P, n] or a list of P rows; got {checks.describe(samples)}.")
    return [np.asarray(row) for row in samples]


def _positions(row: np.ndarray, count: int) -> np.ndarray:
    if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer):
        raise ValueError(f"data.samples must hold rows of whole numbers; got {checks.describe(row)}.")
    checks.check_below("data.samples", row, count, "the samples of data.data")
    return row.astype(np.int32)
