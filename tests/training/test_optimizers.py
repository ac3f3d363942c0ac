"""Optimisers and schedules by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mgu_jax as mgu
from mgu_jax.training.optimizers import OPTIMIZERS, learning_rate_of
from mgu_jax.training.step import run_steps
from tests.same import same
from tests.training.common import KEY, LAST

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


RIGHT = {
    "sgd": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05)),
    "momentum": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.8)),
    "adam": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.05)),
    "adamw": lambda: optax.adamw(0.05, weight_decay=0.1),
    "rmsprop": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.rmsprop(0.05)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_named_optimiser_equals_that_of_optax(name):
    hyper = mgu.Hyper(0.05, weight_decay=0.1, clip_norm=0.5, momentum=0.8)
    mine, right = (
        mgu.Recipe(LAST, optimizer=name).build(hyper, LAST.init(KEY)),
        optax.chain(optax.clip_by_global_norm(0.5), RIGHT[name]()),
    )
    params = LAST.init(KEY)
    mine_state, right_state = mine.init(params), right.init(params)
    for step in range(3):
        gradient = jax.tree.map(lambda a, s=step: jnp.cos(a + s), params)
        got, mine_state = mine.update(gradient, mine_state, params)
        wanted, right_state = right.update(gradient, right_state, params)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "at"), [("constant", [0, 0.5, 1, 1, 1]), ("linear", [0, 0.5, 1, 0.5, 0]), ("cosine", [0, 0.5, 1, 0.5, 0])]
)
def test_schedules_rise_and_fall(name, at):
    rate = learning_rate_of(name, 1.0, 12, 4)
    np.testing.assert_allclose([rate(step) for step in (0, 2, 4, 8, 12)], at, atol=1e-6)


def test_cosine_decay_ends_at_zero(data, recipe):
    recipe = mgu.Recipe(recipe.model, schedule="cosine", total_steps=10, batch_size=8)
    states = []
    last, _ = mgu.fit(recipe, data, steps=10, key=KEY, steps_per_call=1, on_call=lambda s, *_: states.append(s.params))
    assert not same(states[-2], states[-1])
    assert same(run_steps(last, mgu.Hyper(), data, recipe=recipe, steps=1)[0].params, last.params)
