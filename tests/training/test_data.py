"""Which batch a step gets, from samples, a stream or a function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import losses
from mgu_jax.training.data import order, windows
from mgu_jax.training.step import run_steps
from tests.same import same
from tests.training.common import KEY, LAST, TAGS, WORDS, samples, stream

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


def test_every_epoch_sees_every_sample_once_in_a_new_order():
    rows = np.asarray(order(KEY, jnp.int32(0), 15, 8, 40))
    epochs = rows.reshape(3, 40)
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    ragged = np.asarray(order(KEY, jnp.int32(0), 10, 7, 40)).reshape(2, 35)
    assert all(len(set(epoch)) == 35 for epoch in ragged)


@pytest.mark.parametrize(("first", "steps"), [(0, 1), (3, 1), (4, 9), (5, 5), (13, 2)])
def test_batches_do_not_depend_on_where_a_call_begins(first, steps):
    whole = order(KEY, jnp.int32(0), 15, 8, 40)
    np.testing.assert_array_equal(order(KEY, jnp.int32(first), steps, 8, 40), whole[first : first + steps])


def test_lengths_reach_the_model_and_the_loss():
    """What comes after the length of a sample changes nothing, neither in xs nor in the targets."""
    rng = np.random.default_rng(0)
    lengths, xs = np.array([6, 2, 4, 1] * 3, np.int32), rng.standard_normal((12, 6, 3)).astype(np.float32)
    targets = rng.integers(0, 2, (12, 6)).astype(np.int32)
    behind = np.arange(6)[None] >= lengths[:, None]
    spoilt = mgu.Data(np.where(behind[..., None], np.nan, xs), np.where(behind, -1, targets), lengths)
    recipe = mgu.Recipe(TAGS, batch_size=4)
    runs = [mgu.fit(recipe, data, steps=7, key=KEY) for data in (mgu.Data(xs, targets, lengths), spoilt)]
    assert same(runs[0][0].params, runs[1][0].params)
    np.testing.assert_array_equal(runs[0][1], runs[1][1])

    params = runs[0][0].params
    (score,) = mgu.evaluate(TAGS, params, spoilt, (losses.accuracy,), batch_size=5)
    right = targets == np.asarray(TAGS.apply(params, xs.swapaxes(0, 1)).argmax(-1)).T
    assert abs(score - right[~behind].mean()) < 1e-6


def test_a_source_gives_the_same_run_as_the_same_data_on_the_device():
    data, recipe = samples(), mgu.Recipe(LAST, batch_size=8)
    rows = np.asarray(order(mgu.start(recipe, KEY).key, jnp.int32(0), 20, 8, 24))
    asked = []

    def source(step):
        asked.append(step)
        return mgu.Data(data.xs[rows[step]], data.targets[rows[step]])

    (a, losses_a), (b, losses_b) = (mgu.fit(recipe, d, steps=20, key=KEY, steps_per_call=6) for d in (data, source))
    assert asked == list(range(20))
    np.testing.assert_array_equal(losses_a, losses_b)
    assert same(a, b)


def test_a_stream_is_read_in_windows_with_the_state_carried():
    """By hand: four rows, windows of five; the state of a window enters the next one without a gradient."""
    data = stream()
    recipe = mgu.Recipe(WORDS, optimizer="sgd", batch_size=4, window=5)
    hyper = mgu.Hyper(0.1)
    assert windows(data, 4, 5) == 10
    state = mgu.start(recipe, KEY, hyper)
    after, values = run_steps(state, hyper, data, recipe=recipe, steps=13)

    params, carry = state.params, None
    rows, targets = (a[:200].reshape(4, 50) for a in data[:2])
    for step in range(13):
        at = slice(step % 10 * 5, step % 10 * 5 + 5)
        if step % 10 == 0:
            carry = WORDS.start(params, (4,))

        def loss(params, carry, at=at):
            ys, carry = WORDS.apply(params, jnp.asarray(rows[:, at].T), state=carry, return_state=True)
            return losses.cross_entropy(ys, jnp.asarray(targets[:, at].T)), carry

        (value, carry), gradient = jax.value_and_grad(loss, has_aux=True)(params, carry)
        np.testing.assert_allclose(values[step], value, rtol=1e-5)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    for got, wanted in zip(jax.tree.leaves((after.params, after.carry)), jax.tree.leaves((params, carry)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_a_learned_first_state_learns_from_streams_too():
    """Only an epoch's first window reaches it. With one window per epoch, rows and samples give the same gradient."""
    model = mgu.Model(7, (6,), 7, embedding_size=4, learned_h0=True)
    data, hyper = stream(200), mgu.Hyper(0.1)
    rows = mgu.Data(*(a.reshape(4, 50) for a in data[:2]))
    as_stream, as_rows = (
        mgu.fit(mgu.Recipe(model, optimizer="sgd", batch_size=4, window=window), data, steps=3, key=KEY, hyper=hyper)[0]
        for window, data in ((50, data), (None, rows))
    )
    assert np.abs(as_stream.params.h0.layers[0]).max() > 1e-4
    for got, wanted in zip(*map(jax.tree.leaves, (as_stream.params, as_rows.params)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    # Later windows give it no gradient.
    state = mgu.start(recipe := mgu.Recipe(model, optimizer="sgd", batch_size=4, window=10), KEY, hyper)
    first, _ = run_steps(state, hyper, data, recipe=recipe, steps=1)
    second, _ = run_steps(first, hyper, data, recipe=recipe, steps=4)
    assert np.abs(first.params.h0.layers[0]).max() > 1e-4
    np.testing.assert_array_equal(second.params.h0.layers[0], first.params.h0.layers[0])
