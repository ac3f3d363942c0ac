"""Losses and metrics of a batch: functions of a model's outputs and the targets.

Each returns the mean over the entries [...]. A mask of zeros and ones leaves entries out: a model that reads out every
step gives the steps [T, B] that count. Weights say how much each entry counts, [T, B] or one per sample, [B]. What is
left out may hold anything as its target. Sums and means are in float32 at least, whatever the dtype of the model.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mgu_jax.layer.products import wide

Loss = Callable[..., Any]


def widened(tree: Any) -> Any:
    """The arrays with those of less than 32 bits in float32: a sum over data in float16 ends at 65,504."""

    def one(a: Any) -> Any:
        return a.astype(wide(a)) if jnp.issubdtype(getattr(a, "dtype", bool), jnp.floating) else a

    return jax.tree.map(one, tree)


def mean(values: Array, mask: Any = None, weights: Any = None) -> Array:
    """The weighted mean of values [...] where the mask is one; zero if no entry counts."""
    values, share = widened(values), share_of(values.shape, mask, weights)
    if share is None:
        return values.mean()
    share, total = share.astype(values.dtype), jnp.sum(share, dtype=values.dtype)
    return jnp.sum(jnp.where(share > 0, values * share, 0)) / jnp.where(total > 0, total, 1)


def share_of(shape: tuple[int, ...], mask: Any = None, weights: Any = None) -> Any:
    """How much each entry counts, an array of this shape; ``None`` if all count alike."""
    parts = [jnp.asarray(part) for part in (mask, weights) if part is not None]
    parts = [jnp.broadcast_to(widened(part), shape) for part in parts]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else jnp.where(parts[0].astype(bool), parts[1], 0)


def _counted(targets: Array, shape: tuple[int, ...], mask: Any, weights: Any) -> Array:
    """The targets, zero where the entries [...] do not count, so that nan there reaches no gradient."""
    share = share_of(shape, mask, weights)
    if share is None:
        return targets
    used = share.astype(bool).reshape(shape + (1,) * (targets.ndim - len(shape)))
    return jnp.where(used, targets, jnp.zeros((), targets.dtype))


def _check_labels(ys: Array, targets: Array) -> None:
    if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.shape != ys.shape[:-1]:
        wanted, came = list(ys.shape[:-1]), f"{targets.dtype} {list(targets.shape)}"
        rule = f"targets must be whole numbers {wanted} (the model returns {list(ys.shape)})"
        raise ValueError(f"{rule}; got {came}.")


def _check_numbers(ys: Array, targets: Array) -> None:
    if targets.shape != ys.shape:
        raise ValueError(f"targets must have shape {list(ys.shape)}, as the model returns; got {list(targets.shape)}.")


def cross_entropy(ys: Array, targets: Array, mask: Any = None, weights: Any = None) -> Array:
    """The mean softmax cross entropy in nats: ys [..., K] are logits, targets [...] whole numbers below K.

    Raises:
        ValueError: targets have another shape or dtype.
    """
    _check_labels(ys, targets)
    labels = _counted(jnp.asarray(targets), targets.shape, mask, weights)
    return mean(optax.softmax_cross_entropy_with_integer_labels(widened(ys), labels), mask, weights)


def binary_cross_entropy(ys: Array, targets: Array, mask: Any = None, weights: Any = None) -> Array:
    """The mean cross entropy in nats of K labels that are each true or false, such as the notes of a chord.

    ys [..., K] are logits, and targets [..., K] are probabilities: 0 and 1, or bool. The mean is over the labels too;
    times K it is the cross entropy of a step.

    Raises:
        ValueError: targets have another shape.
    """
    _check_numbers(ys, targets)
    ys = widened(ys)
    labels = _counted(jnp.asarray(targets, ys.dtype), ys.shape[:-1], mask, weights)
    return mean(optax.sigmoid_binary_cross_entropy(ys, labels).mean(-1), mask, weights)


def accuracy(ys: Array, targets: Array, mask: Any = None, weights: Any = None) -> Array:
    """The fraction of entries whose largest logit is the target's: ys [..., K], targets [...] whole numbers below K.

    Raises:
        ValueError: targets have another shape or dtype.
    """
    _check_labels(ys, targets)
    return mean((jnp.argmax(ys, -1) == targets).astype(widened(ys).dtype), mask, weights)


def squared_error(ys: Array, targets: Array, mask: Any = None, weights: Any = None) -> Array:
    """The mean squared error: ys and targets [..., K].

    Raises:
        ValueError: targets have another shape.
    """
    _check_numbers(ys, targets)
    numbers = _counted(widened(jnp.asarray(targets)), ys.shape[:-1], mask, weights)
    return mean(optax.squared_error(widened(ys), numbers).mean(-1), mask, weights)


def called(function: Any) -> Any:
    """What a ``functools.partial`` or ``jax.jit`` calls; any other function itself."""
    if isinstance(function, partial):
        return called(function.func)
    jitted = hasattr(function, "__wrapped__") and hasattr(function, "lower")
    return called(function.__wrapped__) if jitted else function


def of_labels(function: Any) -> bool:
    """Whether the targets of a function are labels, whole numbers below K."""
    return called(function) in (cross_entropy, accuracy)


def of_numbers(function: Any) -> bool:
    """Whether the targets of a function are numbers [..., K], as the outputs are."""
    return called(function) in (squared_error, binary_cross_entropy)


def is_higher_better(metric: Any, loss: Any = None) -> bool | None:
    """Whether a metric is better when higher: known of those of this file, and of a run's own loss; ``None`` if not."""
    if called(metric) == accuracy:
        return True
    losses = (cross_entropy, binary_cross_entropy, squared_error, called(loss))
    return False if called(metric) in losses else None
