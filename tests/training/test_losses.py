"""Losses and metrics: their values, and targets that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgu_jax.training import losses

YS = jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]])


def test_values():
    log_softmax = np.log(np.exp(YS) / np.exp(YS).sum(1, keepdims=True))
    np.testing.assert_allclose(
        losses.cross_entropy(YS, np.array([1, 2])), -(log_softmax[0, 1] + log_softmax[1, 2]) / 2, 1e-6
    )
    assert losses.accuracy(YS, np.array([1, 2])) == 0.5
    assert losses.squared_error(YS, YS + 2) == 4


@pytest.mark.parametrize("function", [losses.cross_entropy, losses.accuracy])
@pytest.mark.parametrize("targets", [np.array([[1], [2]]), np.array([1, 2, 0]), np.array([1.0, 2.0], np.float32)])
def test_targets_that_do_not_fit(function, targets):
    with pytest.raises(ValueError, match=r"targets must be whole numbers \[2\] \(the model gives \[2, 3\]\); got"):
        jax.jit(function)(YS, targets)


def test_squared_error_does_not_broadcast():
    with pytest.raises(ValueError, match=r"targets must have shape \[2, 3\], as the model gives; got \[2, 1\]."):
        losses.squared_error(YS, YS[:, :1])
