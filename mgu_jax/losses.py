"""Losses and metrics of a batch: functions of what a model gives and what it should have given."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax import Array

Loss = Callable[[Array, Array], Array]


def _check_labels(ys: Array, targets: Array) -> None:
    if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.shape != ys.shape[:-1]:
        wanted, came = list(ys.shape[:-1]), f"{targets.dtype} {list(targets.shape)}"
        raise ValueError(f"targets must be whole numbers {wanted} (the model gives {list(ys.shape)}); got {came}.")


def cross_entropy(ys: Array, targets: Array) -> Array:
    """Mean softmax cross entropy in nats: ys [..., K] are logits, targets [...] whole numbers below K.

    Raises:
        ValueError: targets of another shape or type.
    """
    _check_labels(ys, targets)
    return optax.softmax_cross_entropy_with_integer_labels(ys, targets).mean()


def accuracy(ys: Array, targets: Array) -> Array:
    """The share of rows whose largest logit is the target's: ys [..., K], targets [...] whole numbers.

    Raises:
        ValueError: targets of another shape or type.
    """
    _check_labels(ys, targets)
    return jnp.mean(jnp.argmax(ys, -1) == targets, dtype=ys.dtype)


def squared_error(ys: Array, targets: Array) -> Array:
    """Mean squared error: ys and targets [..., K].

    Raises:
        ValueError: targets of another shape.
    """
    if targets.shape != ys.shape:
        raise ValueError(f"targets must have shape {list(ys.shape)}, as the model gives; got {list(targets.shape)}.")
    return optax.squared_error(ys, targets).mean()
