"""Losses and metrics: their values, and targets that do not fit."""

from functools import partial

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


def test_which_metrics_are_better_when_higher():
    def mine(ys, targets, power=1):
        return ys.mean()

    assert losses.is_higher_better(losses.accuracy) is True
    assert losses.is_higher_better(losses.cross_entropy) is losses.is_higher_better(losses.squared_error) is False
    assert losses.is_higher_better(partial(losses.squared_error, mask=None)) is False
    assert losses.is_higher_better(mine) is losses.is_higher_better(mine, losses.cross_entropy) is None
    assert losses.is_higher_better(mine, mine) is losses.is_higher_better(partial(mine, power=2), mine) is False
