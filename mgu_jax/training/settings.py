"""Settings to sweep over: a ``Hyper`` whose entries are rows of numbers, on a grid or drawn at random."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mgu_jax import checks
from mgu_jax.training.optimizers import Hyper

Sampler = Callable[[Array, int], Array]  # (key, count) -> [count]


def _check_ends(low: Any, high: Any) -> None:
    checks.check_number("low", low)
    checks.check_number("high", high)


def uniform(low: float, high: float) -> Sampler:
    """Numbers between low and high.

    Raises:
        TypeError: one of them is no number.
        ValueError: low is not below high, or one of them is infinite.
    """
    _check_ends(low, high)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"low must be below high, and both finite; got {low} and {high}.")
    return lambda key, count: jax.random.uniform(key, (count,), minval=low, maxval=high)


def log_uniform(low: float, high: float) -> Sampler:
    """Numbers between low and high, both above 0, as likely in every decade.

    Raises:
        TypeError: one of them is no number.
        ValueError: low is not above 0 or not below high, or high is infinite.
    """
    _check_ends(low, high)
    if not 0 < low < high < math.inf:
        raise ValueError(f"low and high must be finite numbers with 0 < low < high; got {low} and {high}.")
    return lambda key, count: jnp.exp(uniform(math.log(low), math.log(high))(key, count))


def _check_axes(axes: dict[str, Any]) -> None:
    for name in axes:
        checks.check_choice("an axis of the sweep", name, Hyper._fields)
    if not axes:
        raise ValueError("axes must be named, such as learning_rate=(1e-3, 1e-2); got none.")


def _is_row(values: Any) -> bool:
    if isinstance(values, list | tuple):
        return bool(values) and all(map(checks.is_number, values))
    return np.ndim(values) == 1 and len(values) > 0 and checks.is_numeric(values)


def grid(**axes: Any) -> Hyper:
    """Every combination of the values of the axes, the last axis fastest: entries [N] of a ``Hyper``.

    Raises:
        ValueError: an axis that ``Hyper`` has not, or without values.
    """
    _check_axes(axes)
    for name, values in axes.items():
        if not _is_row(values):
            came = repr(values) if isinstance(values, list | tuple) else checks.describe(values)
            raise ValueError(f"{name} must be a row of numbers, at least one; got {came}.")
    columns = zip(*itertools.product(*axes.values()), strict=True)
    return Hyper()._replace(
        **{name: jnp.asarray(column, jnp.float32) for name, column in zip(axes, columns, strict=True)}
    )


def draw(key: Array, count: int, **axes: Sampler) -> Hyper:
    """count settings at random: an axis is ``uniform(low, high)``, ``log_uniform(low, high)`` or any function of (key,
    count). Raises as ``grid`` does.
    """
    checks.check_key("key", key)
    checks.check_size("count", count)
    _check_axes(axes)
    for name, sampler in axes.items():
        if not callable(sampler):
            raise TypeError(
                f"{name} must be a sampler, such as mgu_jax.uniform(low, high); got {checks.describe(sampler)}."
            )
    keys = jax.random.split(key, len(axes))
    drawn = {name: axes[name](k, count) for name, k in zip(axes, keys, strict=True)}
    for name, numbers in drawn.items():
        if getattr(numbers, "shape", None) != (count,):
            raise ValueError(f"{name} must be a sampler that gives [{count}]; it gives {checks.describe(numbers)}.")
    return Hyper()._replace(**drawn)


def settings(hyper: Hyper) -> tuple[Hyper, int]:
    """The same with every entry [N], and N.

    Raises:
        TypeError: an entry that is neither a number nor an array.
        ValueError: entries of different lengths.
    """
    for name, value in hyper._asdict().items():
        if not (value is None or checks.is_number(value) or isinstance(value, jax.Array | np.ndarray)):
            raise TypeError(f"hyper.{name} must be a number or an array of them; got {checks.describe(value)}.")
    sizes = {name: jnp.shape(value) for name, value in hyper._asdict().items() if value is not None}
    count = max((shape[0] for shape in sizes.values() if shape), default=1)
    for name, shape in sizes.items():
        if shape not in ((), (count,)):
            raise ValueError(
                f"hyper.{name} must be a number or have shape [{count}], as the longest axis; got {list(shape)}."
            )
    return jax.tree.map(lambda a: jnp.broadcast_to(jnp.asarray(a, jnp.float32), (count,)), hyper), count
