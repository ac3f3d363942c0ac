"""One call of the compiled loop: it equals the plain loop, and an equal recipe compiles nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mgu_jax as mgu
from mgu_jax import losses
from mgu_jax.training.data import order
from mgu_jax.training.step import run_steps
from tests.training.common import KEY, LAST, samples

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


def test_a_call_of_the_compiled_loop_equals_the_plain_loop(data, recipe):
    hyper = mgu.Hyper(learning_rate=0.01, weight_decay=0.1, clip_norm=0.5)
    state = mgu.start(recipe, KEY, hyper)
    together, losses = run_steps(state, hyper, data, recipe=recipe, steps=7)

    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.01, weight_decay=0.1))
    params, opt_state = state.params, optimizer.init(state.params)

    def loss(params, xs, targets):
        ys = recipe.model.apply(params, xs.swapaxes(0, 1))
        return optax.softmax_cross_entropy_with_integer_labels(ys, targets).mean()

    @jax.jit
    def update(params, opt_state, xs, targets):
        value, gradient = jax.value_and_grad(loss)(params, xs, targets)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    for step, rows in enumerate(order(state.key, state.step, 7, 8, 40)):
        params, opt_state, value = update(params, opt_state, data.xs[rows], data.targets[rows])
        assert abs(value - losses[step]) < 1e-5
    assert int(together.step) == 7
    for a, b in zip(jax.tree.leaves(together.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_every_step_has_its_own_loss():
    """Targets [N, T, K] meet a model that reads out every step; each step's error reaches the gradient (fault 7)."""
    rng = np.random.default_rng(0)
    data = mgu.Data(
        rng.standard_normal((8, 5, 3)).astype(np.float32), rng.standard_normal((8, 5, 2)).astype(np.float32)
    )
    recipe = mgu.Recipe(mgu.Model(3, (4,), 2), losses.squared_error, "sgd", batch_size=8)
    state = mgu.start(recipe, KEY)
    _, values = run_steps(state, mgu.Hyper(), data, recipe=recipe, steps=1)
    ys = recipe.model.apply(state.params, data.xs.swapaxes(0, 1))
    assert abs(values[0] - np.mean((ys - data.targets.swapaxes(0, 1)) ** 2)) < 1e-6


def test_one_trace_per_configuration(data):
    traces = []
    model = mgu.Model(3, (8,), 2, readout="last")

    def loss(ys, targets):
        traces.append(1)
        return losses.cross_entropy(ys, targets)

    recipe = mgu.Recipe(model, loss, batch_size=8)
    for rate in (0.1, 0.2):
        mgu.fit(recipe, data, steps=40, key=KEY, hyper=mgu.Hyper(learning_rate=rate), steps_per_call=10)
    assert len(traces) == 1


@pytest.mark.slow
def test_rates_of_noise_are_traced_and_change_from_step_to_step():
    data, recipe = samples(), mgu.Recipe(LAST, batch_size=8)
    plain, noisy, again = (
        mgu.fit(recipe, data, steps=6, key=KEY, hyper=mgu.Hyper(**rates), steps_per_call=3)[1]
        for rates in ({}, {"dropout": 0.5, "zoneout": 0.1}, {"dropout": 0.5, "zoneout": 0.1})
    )
    np.testing.assert_array_equal(noisy, again)
    assert not np.any(noisy == plain)
    still = mgu.Recipe(LAST, optimizer=lambda hyper: optax.sgd(0.0), batch_size=24)
    _, values = mgu.fit(still, data, steps=4, key=KEY, hyper=mgu.Hyper(dropout=0.5))
    assert len(set(values.tolist())) == 4

    def values_of(rate):
        return run_steps(mgu.start(recipe, KEY), mgu.Hyper(dropout=rate), data, recipe=recipe, steps=2)[1]

    traced = jax.vmap(values_of)(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(traced[0], plain[:2], rtol=1e-6)


def test_an_equal_copy_of_a_model_in_a_second_recipe_compiles_nothing():
    compiled = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    def train():
        model = mgu.Model(3, (7,), 2, readout="last", cell=mgu.Cell())
        recipe = mgu.Recipe(model, batch_size=8)
        validation = mgu.Validation(samples(), (losses.accuracy,))
        mgu.fit(recipe, samples(), steps=4, key=KEY, steps_per_call=2, validation=validation)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train()
        assert compiled
        compiled.clear()
        train()
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
