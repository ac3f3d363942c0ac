"""Settings on a grid and at random, and the dtype of their numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.training.optimizers import OPTIMIZERS
from mgu_jax.training.step import run_steps
from tests.training.common import KEY, KEYS, samples
from tests.training.test_sweep import GRID

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


def test_grid_and_draw():
    np.testing.assert_allclose(GRID.learning_rate, [1e-3, 1e-3, 3e-2, 3e-2])
    np.testing.assert_allclose(GRID.forget_bias, [-1, 1, -1, 1])
    assert GRID.weight_decay == 0.0
    one = mgu.grid(weight_decay=0.3, learning_rate=(1e-3, 3e-2), momentum=np.float32(0.5))
    np.testing.assert_allclose(one.weight_decay, [0.3, 0.3])
    np.testing.assert_allclose(one.learning_rate, [1e-3, 3e-2])
    np.testing.assert_allclose(one.momentum, [0.5, 0.5])
    drawn = mgu.draw(KEYS[0], 1000, learning_rate=mgu.log_uniform(1e-4, 1e-1), forget_bias=mgu.uniform(-2, 2))
    rates = np.asarray(drawn.learning_rate)
    assert rates.shape == (1000,)
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-1
    assert abs(np.log10(rates).mean() + 2.5) < 0.1  # as likely in every decade
    assert abs(np.asarray(drawn.forget_bias).mean()) < 0.15
    assert abs(np.corrcoef(np.log(rates), drawn.forget_bias)[0, 1]) < 0.1
    again = mgu.draw(KEYS[0], 1000, learning_rate=mgu.log_uniform(1e-4, 1e-1), forget_bias=mgu.uniform(-2, 2))
    np.testing.assert_array_equal(again.learning_rate, rates)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hyper_arrays_do_not_widen_half_precision(name):
    """Checked by dtype for every optimiser, and once in a sweep, where all numbers are arrays."""
    model, half = mgu.Model(3, (5,), 2, readout="last", dtype=jnp.bfloat16), {jnp.dtype(jnp.bfloat16)}
    data = samples()._replace(xs=jnp.asarray(samples().xs, jnp.bfloat16))
    recipe = mgu.Recipe(model, optimizer=name, batch_size=8, schedule="cosine", total_steps=4)
    hyper = mgu.Hyper(learning_rate=jnp.float32(0.01), clip_norm=jnp.float32(1.0), weight_decay=jnp.float32(0.01))
    state = mgu.start(recipe, KEY, hyper)
    after, _ = jax.eval_shape(partial(run_steps, recipe=recipe, steps=4), state, hyper, data)
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == half
    if name == "adamw":
        _, values = run_steps(state, hyper, data, recipe=recipe, steps=4)
        swept, together = mgu.sweep(recipe, data, hyper=hyper, keys=KEY[None], steps=4)
        assert {leaf.dtype for leaf in jax.tree.leaves(swept.members.params)} == half
        np.testing.assert_allclose(together[0], values, rtol=0.02)
