"""Losses and metrics of a batch: functions of a model's outputs and the targets.

Each accepts a mask of zeros and ones, [...], and returns the mean over the entries where the mask is one. A model that
reads out every step passes the mask of the steps within each sequence's length. Without a mask, every entry counts.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

Loss = Callable[..., Array]


def is_higher_better(metric: Any, loss: Any = None) -> bool | None:
    """Whether a metric is better when higher: known of those of this file, and of a run's own loss; ``None`` if not."""
    function, of_loss = (getattr(f, "func", f) for f in (metric, loss))  # of a functools.partial, what it calls
    if function == accuracy:
        return True
    return False if function in (cross_entropy, squared_error, of_loss) else None


def mean(values: Array, mask: Any = None) -> Array:
    """The mean of values [...] where the mask is one; zero if it is one nowhere."""
    if mask is None:
        return values.mean()
    weights = jnp.asarray(mask, values.dtype)
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1)


def _check_labels(ys: Array, targets: Array) -> None:
    if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.shape != ys.shape[:-1]:
        wanted, came = list(ys.shape[:-1]), f"{targets.dtype} {list(targets.shape)}"
        rule = f"targets must be whole numbers {wanted} (the model returns {list(ys.shape)})"
        raise ValueError(f"{rule}; got {came}.")


def cross_entropy(ys: Array, targets: Array, mask: Any = None) -> Array:
    """The mean softmax cross entropy in nats: ys [..., K] are logits, targets [...] whole numbers below K.

    Raises:
        ValueError: targets have another shape or dtype.
    """
    _check_labels(ys, targets)
    return mean(optax.softmax_cross_entropy_with_integer_labels(ys, targets), mask)


def accuracy(ys: Array, targets: Array, mask: Any = None) -> Array:
    """The fraction of entries whose largest logit is the target's: ys [..., K], targets [...] whole numbers below K.

    Raises:
        ValueError: targets have another shape or dtype.
    """
    _check_labels(ys, targets)
    return mean((jnp.argmax(ys, -1) == targets).astype(ys.dtype), mask)


def squared_error(ys: Array, targets: Array, mask: Any = None) -> Array:
    """The mean squared error: ys and targets [..., K].

    Raises:
        ValueError: targets have another shape.
    """
    if targets.shape != ys.shape:
        raise ValueError(f"targets must have shape {list(ys.shape)}, as the model returns; got {list(targets.shape)}.")
    return mean(optax.squared_error(ys, targets).mean(-1), mask)
