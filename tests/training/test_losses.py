"""Losses and metrics: their values, and targets that do not fit."""

from functools import partial

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
    notes, p = np.array([[0, 1, 1], [1, 0, 0]]), 1 / (1 + np.exp(-np.asarray(YS, float)))
    wanted = -np.mean(np.log(np.where(notes, p, 1 - p)))
    for targets in (notes, notes.astype(bool), notes.astype(np.float32)):
        np.testing.assert_allclose(losses.binary_cross_entropy(YS, targets), wanted, 1e-6)


ALL = [losses.cross_entropy, losses.accuracy, losses.binary_cross_entropy, losses.squared_error]


def entries(function, *shape, dtype=jnp.float32):
    """Random outputs [*shape, 3] and targets that fit the function."""
    rng = np.random.default_rng(0)
    ys, wide = jnp.asarray(rng.standard_normal((*shape, 3)), dtype), rng.random((*shape, 3)).astype(np.float32)
    return ys, rng.integers(0, 3, shape) if losses.of_labels(function) else wide


@pytest.mark.parametrize("function", ALL)
def test_a_mask_and_weights_take_the_mean_over_what_counts(function):
    ys, targets = entries(function, 4, 5)
    each = np.array([[function(ys[t, b], targets[t, b]) for b in range(5)] for t in range(4)])
    rng = np.random.default_rng(1)
    mask, per_sample, per_step = rng.random((4, 5)) < 0.6, rng.random(5), rng.random((4, 5)) * 1e-3
    for weights in (None, per_sample, per_step):
        share = mask * (1 if weights is None else weights)
        weights = None if weights is None else jnp.asarray(weights, jnp.float32)
        np.testing.assert_allclose(function(ys, targets, mask, weights), (each * share).sum() / share.sum(), 2e-6)
        assert function(ys, targets, jnp.zeros_like(mask), weights) == 0
    np.testing.assert_allclose(
        function(ys, targets, weights=per_sample), (each * per_sample).sum() / per_sample.sum() / 4, 2e-6
    )


@pytest.mark.parametrize("function", [losses.binary_cross_entropy, losses.squared_error])
def test_a_target_that_does_not_count_may_be_nan(function):
    ys, targets = entries(function, 4, 5)
    mask = np.arange(20).reshape(4, 5) % 3 > 0
    spoilt = np.where(mask[..., None], targets, np.nan)
    right, wrong = (jax.value_and_grad(function)(ys, t, mask) for t in (targets, spoilt))
    np.testing.assert_array_equal(wrong[0], right[0])
    np.testing.assert_array_equal(wrong[1], right[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("function", ALL)
def test_sums_run_in_float32(function, dtype):
    """The mask of 70,000 entries sums to more than float16 can hold, and to what bfloat16 cannot count to."""
    ys, targets = entries(function, 280, 250, dtype=dtype)
    mask, wide = jnp.ones((280, 250), bool), ys.astype(jnp.float32)
    for options in ({}, {"mask": mask}, {"mask": mask.astype(dtype)}):
        value, gradient = jax.value_and_grad(function)(ys, targets, **options)
        right, exact = jax.value_and_grad(function)(wide, targets)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, right, rtol=1e-5)
        np.testing.assert_allclose(gradient.astype(jnp.float32), exact, rtol=1e-2, atol=1e-7)


def test_which_metrics_are_better_when_higher():
    def mine(ys, targets, power=1):
        return ys.mean()

    assert losses.is_higher_better(losses.accuracy) is True
    assert losses.is_higher_better(losses.cross_entropy) is losses.is_higher_better(losses.squared_error) is False
    assert losses.is_higher_better(partial(losses.squared_error, mask=None)) is False
    assert (
        losses.is_higher_better(jax.jit(losses.accuracy)) is losses.is_higher_better(partial(losses.accuracy)) is True
    )
    assert losses.is_higher_better(mine) is losses.is_higher_better(mine, losses.cross_entropy) is None
    assert (
        losses.is_higher_better(mine, mine) is losses.is_higher_better(jax.jit(partial(mine, power=2)), mine) is False
    )
