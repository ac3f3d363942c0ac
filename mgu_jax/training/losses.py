"""Losses and metrics of a batch: functions of what a model gives and what it should have given.

All of them take a mask of the rows that count, [...] of zeros and ones, and give the mean over these: the steps within
each sequence's length, for a model that reads out every step. Without one, all rows count.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

Loss = Callable[..., Array]


def mean(values: Array, mask: Any = None) -> Array:
    """Over the rows [...] that count; zero where none does."""
    if mask is None:
        return values.mean()
    weights = jnp.asarray(mask, values.dtype)
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1)


def _check_labels(ys: Array, targets: Array) -> None:
    if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.shape != ys.shape[:-1]:
        wanted, came = list(ys.shape[:-1]), f"{targets.dtype} {list(targets.shape)}"
        raise ValueError(f"targets must be whole numbers {wanted} (the model gives {list(ys.shape)}); got {came}.")


def cross_entropy(ys: Array, targets: Array, mask: Any = None) -> Array:
    """Mean softmax cross entropy in nats: ys [..., K] are logits, targets [...] whole numbers below K.

    Raises:
        ValueError: targets of another shape or type.
    """
    _check_labels(ys, targets)
    return mean(optax.softmax_cross_entropy_with_integer_labels(ys, targets), mask)


def accuracy(ys: Array, targets: Array, mask: Any = None) -> Array:
    """The share of rows whose largest logit is the target's: ys [..., K], targets [...] whole numbers.

    Raises:
        ValueError: targets of another shape or type.
    """
    _check_labels(ys, targets)
    return mean((jnp.argmax(ys, -1) == targets).astype(ys.dtype), mask)


def squared_error(ys: Array, targets: Array, mask: Any = None) -> Array:
    """Mean squared error: ys and targets [..., K].

    Raises:
        ValueError: targets of another shape.
    """
    if targets.shape != ys.shape:
        raise ValueError(f"targets must have shape {list(ys.shape)}, as the model gives; got {list(targets.shape)}.")
    return mean(optax.squared_error(ys, targets).mean(-1), mask)
