"""``Hyper``: the numbers of a run that may be traced, and how to make many settings of them, on a grid or at random."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mgu_jax import checks

Sampler = Callable[[Array, int], Array]  # (key, count) -> [count]


class Hyper(NamedTuple):
    """The numbers that a run can be swept over. Each is a scalar and may be traced."""

    learning_rate: Any = 1e-3
    weight_decay: Any = 0.0
    clip_norm: Any = jnp.inf  # largest global norm of a gradient
    forget_bias: Any = -1.0  # initial value, in the paper's sign
    initial_scale: Any = 1.0  # factor on the initial W, U and W_y
    momentum: Any = 0.9  # of the optimiser "momentum"
    dropout: Any = None  # for this and the following rates, None means the model's own rate
    recurrent_dropout: Any = None
    zoneout: Any = None
    dropconnect: Any = None
    hidden_size: Any = None  # units of each layer, at most the model's width, which None means; a known number

    def rates(self) -> dict[str, Any]:
        """The rates of noise that are set here, as ``model.apply`` takes them."""
        rates = {name: getattr(self, name) for name in ("dropout", "recurrent_dropout", "zoneout", "dropconnect")}
        return {name: rate for name, rate in rates.items() if rate is not None}


def in_dtype_of(params: Any, hyper: Hyper) -> Hyper:
    """``hyper`` with its arrays in the dtype of the parameters; Python numbers need no conversion.

    A float32 learning rate would otherwise widen the updates of bfloat16 parameters.
    """
    dtype = jnp.result_type(*jax.tree.leaves(params))
    return jax.tree.map(lambda a: a if jax.typeof(a).weak_type else jnp.asarray(a, dtype), hyper)


_RATE = ("lie in [0, 1)", lambda numbers: (numbers >= 0) & (numbers < 1))
_AT_LEAST_0 = ("be at least 0", lambda numbers: numbers >= 0)
_BOUNDS = {
    "learning_rate": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    "clip_norm": ("be above 0 (inf does not clip)", lambda numbers: numbers > 0),
    "initial_scale": _AT_LEAST_0,
    "forget_bias": ("be a number", lambda numbers: ~np.isnan(numbers)),
    "hidden_size": ("be a whole number of at least 1", lambda numbers: (numbers >= 1) & (numbers % 1 == 0)),
}


def check_hyper(hyper: Hyper) -> None:
    """Check that every number, or array of numbers, lies within its bounds; traced values are not checked.

    Raises:
        TypeError: an entry that is not a rate is ``None``.
        ValueError: an entry is empty or out of bounds.
    """
    for name, value in hyper._asdict().items():
        if value is None and Hyper._field_defaults[name] is not None:
            raise TypeError(f"hyper.{name} must be a number or an array of numbers; got None.")
        if value is None or not checks.is_numeric(value):
            continue
        numbers = np.asarray(value)
        if not numbers.size:
            raise ValueError(f"hyper.{name} must hold at least one number; got shape {list(numbers.shape)}.")
        rule, is_good = _BOUNDS.get(name, _RATE)
        if not (good := is_good(numbers)).all():
            raise ValueError(f"hyper.{name} must {rule}; got {numbers[~good].flat[0]}.")


def check_one_setting(hyper: Hyper) -> None:
    """Check that every entry is one number, as ``fit`` needs it.

    Raises:
        ValueError: an entry is something else.
    """
    for name, value in hyper._asdict().items():
        if value is not None and not checks.is_number(value):
            came = checks.describe(value)
            raise ValueError(f"hyper.{name} must be one number (mgu_jax.sweep takes several); got {came}.")


def as_settings(hyper: Hyper) -> tuple[Hyper, int]:
    """The same settings with every entry [N], and N.

    Raises:
        TypeError: an entry is neither a number nor an array.
        ValueError: entries have different lengths.
    """
    for name, value in hyper._asdict().items():
        if not (value is None or checks.is_number(value) or isinstance(value, jax.Array | np.ndarray)):
            raise TypeError(f"hyper.{name} must be a number or an array of numbers; got {checks.describe(value)}.")
    shapes = {name: jnp.shape(value) for name, value in hyper._asdict().items() if value is not None}
    count = max((shape[0] for shape in shapes.values() if shape), default=1)
    for name, shape in shapes.items():
        if shape not in ((), (count,)):
            rule = f"a number or have shape [{count}], as the longest entry"
            raise ValueError(f"hyper.{name} must be {rule}; got {list(shape)}.")
    return jax.tree.map(lambda a: jnp.broadcast_to(jnp.asarray(a, jnp.float32), (count,)), hyper), count


def per_member(hyper: Hyper, seeds: int) -> Hyper:
    """Settings [N], repeated for the seeds of each: [N * seeds], one entry per member of a sweep."""
    return jax.tree.map(lambda a: jnp.repeat(a, seeds), hyper)


def uniform(low: float, high: float) -> Sampler:
    """A sampler of numbers between low and high, for ``draw``.

    Raises:
        TypeError: low or high is not a number.
        ValueError: low is not below high, or one of them is infinite.
    """
    _check_ends(low, high)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"low must be below high, and both finite; got {low} and {high}.")
    return lambda key, count: jax.random.uniform(key, (count,), minval=low, maxval=high)


def log_uniform(low: float, high: float) -> Sampler:
    """A sampler of numbers between low and high, both above 0, for ``draw``; every decade is equally likely.

    Raises:
        TypeError: low or high is not a number.
        ValueError: low is not above 0 or not below high, or high is infinite.
    """
    _check_ends(low, high)
    if not 0 < low < high < math.inf:
        raise ValueError(f"low and high must be finite numbers with 0 < low < high; got {low} and {high}.")
    return lambda key, count: jnp.exp(uniform(math.log(low), math.log(high))(key, count))


def grid(**axes: Any) -> Hyper:
    """A ``Hyper`` with entries [N]: every combination of the values of the axes; the last axis varies fastest.

    Args:
        axes: for each entry, a row of numbers, or one number for all settings.

    Raises:
        ValueError: an axis is not an entry of ``Hyper``, or has no values.
    """
    _check_axes(axes)
    rows = {name: [values] if checks.is_number(values) else values for name, values in axes.items()}
    for name, values in rows.items():
        if not _is_row(values):
            came = repr(values) if isinstance(values, list | tuple) else checks.describe(values)
            raise ValueError(f"{name} must be a number or a row of numbers, at least one; got {came}.")
    columns = zip(*itertools.product(*rows.values()), strict=True)
    return Hyper()._replace(
        **{name: jnp.asarray(column, jnp.float32) for name, column in zip(rows, columns, strict=True)}
    )


def draw(key: Array, count: int, **axes: Sampler) -> Hyper:
    """A ``Hyper`` with entries [count], drawn at random.

    Args:
        key: one PRNG key.
        count: how many settings to draw.
        axes: for each entry, ``uniform(low, high)``, ``log_uniform(low, high)`` or any function (key, count) ->
            [count].

    Raises:
        TypeError: key is not a PRNG key, or an axis is not a function.
        ValueError: an axis is not an entry of ``Hyper``, or does not return [count].
    """
    checks.check_key("key", key)
    checks.check_size("count", count)
    _check_axes(axes)
    for name, sampler in axes.items():
        if not callable(sampler):
            example = "mgu_jax.uniform(low, high)"
            raise TypeError(f"{name} must be a sampler, such as {example}; got {checks.describe(sampler)}.")
    keys = jax.random.split(key, len(axes))
    drawn = {name: axes[name](k, count) for name, k in zip(axes, keys, strict=True)}
    for name, numbers in drawn.items():
        if getattr(numbers, "shape", None) != (count,):
            raise ValueError(f"{name} must be a sampler that returns [{count}]; got {checks.describe(numbers)}.")
    return Hyper()._replace(**drawn)


def _check_ends(low: Any, high: Any) -> None:
    checks.check_number("low", low)
    checks.check_number("high", high)


def _check_axes(axes: dict[str, Any]) -> None:
    for name in axes:
        checks.check_choice("an axis of the sweep", name, Hyper._fields)
    if not axes:
        raise ValueError("axes must be named, such as learning_rate=(1e-3, 1e-2); got none.")


def _is_row(values: Any) -> bool:
    if isinstance(values, list | tuple):
        return bool(values) and all(map(checks.is_number, values))
    return np.ndim(values) == 1 and len(values) > 0 and checks.is_numeric(values)
