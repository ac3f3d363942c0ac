"""Losses and metrics: their values, and targets that do not fit."""

import jax.numpy as jnp
import numpy as np

from mgu_jax.training import losses

YS = jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]])


def test_values():
    log_softmax = np.log(np.exp(YS) / np.exp(YS).sum(1, keepdims=True))
    np.testing.assert_allclose(
        losses.cross_entropy(YS, np.array([1, 2])), -(log_softmax[0, 1] + log_softmax[1, 2]) / 2, 1e-6
    )
    assert losses.accuracy(YS, np.array([1, 2])) == 0.5
    assert losses.squared_error(YS, YS + 2) == 4
