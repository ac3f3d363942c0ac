"""What a run may be fed with, what is measured on the way, and what follows from it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mgu_jax as mgu
from mgu_jax.training import data as feed
from mgu_jax.training import losses, optimizers
from mgu_jax.training import step as train
from tests.same import same

KEY = jax.random.key(5)

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


def samples(count=24, T=6, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    xs = rng.standard_normal((count, T, 3)).astype(np.float32)
    return mgu.Data(xs, (xs.sum((1, 2)) > 0).astype(np.int32) % classes)


LAST = mgu.Model(3, (5,), 2, readout="last")
TAGS = mgu.Model(3, (5,), 2)
WORDS = mgu.Model(7, (6,), 7, embedding_size=4)


# Optimisers by name


RIGHT = {
    "sgd": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05)),
    "momentum": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.8)),
    "adam": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.05)),
    "adamw": lambda: optax.adamw(0.05, weight_decay=0.1),
    "rmsprop": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.rmsprop(0.05)),
}


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_an_optimiser_of_a_name_is_optax_own(name):
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
    rate = optimizers.learning_rate_of(name, 1.0, 12, 4)
    np.testing.assert_allclose([rate(step) for step in (0, 2, 4, 8, 12)], at, atol=1e-6)


# What a run is fed with


def test_lengths_reach_the_model_and_the_loss():
    """What stands behind the end of a sample changes nothing, neither in xs nor in the targets."""
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


def test_samples_of_a_model_that_reads_out_once_weigh_alike():
    """However they are cut into batches, and whatever their lengths are."""
    rng = np.random.default_rng(0)
    xs, targets = rng.standard_normal((10, 6, 3)).astype(np.float32), rng.standard_normal((10, 2)).astype(np.float32)
    data, params = mgu.Data(xs, targets, np.array([6] * 5 + [1] * 5, np.int32)), LAST.init(KEY)
    ys = LAST.apply(params, xs.swapaxes(0, 1), lengths=data.lengths)
    for size in (10, 5, 3):
        (score,) = mgu.evaluate(LAST, params, data, (losses.squared_error,), batch_size=size)
        np.testing.assert_allclose(score, np.mean((ys - targets) ** 2), rtol=1e-6)


def test_a_source_on_the_host_gives_the_run_that_the_same_data_on_the_device_gives():
    data, recipe = samples(), mgu.Recipe(LAST, batch_size=8)
    order = np.asarray(feed.order(mgu.start(recipe, KEY).key, jnp.int32(0), 20, 8, 24))
    asked = []

    def source(step):
        asked.append(step)
        return mgu.Data(data.xs[order[step]], data.targets[order[step]])

    (a, losses_a), (b, losses_b) = (mgu.fit(recipe, d, steps=20, key=KEY, steps_per_call=6) for d in (data, source))
    assert asked == list(range(20))
    np.testing.assert_array_equal(losses_a, losses_b)
    assert same(a, b)


def tokens(count=203):
    return np.random.default_rng(0).integers(0, 7, count).astype(np.int32)


def test_a_stream_is_read_in_windows_with_the_state_carried():
    """By hand: four rows side by side, windows of five, the state of one window enters the next without a gradient."""
    stream = mgu.Stream(tokens()[:-1], tokens()[1:])
    recipe = mgu.Recipe(WORDS, optimizer="sgd", batch_size=4, window=5)
    hyper = mgu.Hyper(0.1)
    assert feed.windows(stream, 4, 5) == 10
    state = mgu.start(recipe, KEY, hyper)
    after, values = train.run_steps(state, hyper, stream, recipe=recipe, steps=13)

    params, carry = state.params, None
    rows, targets = (a[:200].reshape(4, 50) for a in stream)
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


def test_a_first_state_that_is_learned_learns_from_streams_too():
    """By the gradient of each epoch's first window: of one window an epoch, by that of the rows as samples."""
    model = mgu.Model(7, (6,), 7, embedding_size=4, learned_h0=True)
    stream, hyper = mgu.Stream(tokens()[:200], tokens()[1:201]), mgu.Hyper(0.1)
    rows = mgu.Data(*(a.reshape(4, 50) for a in stream))
    as_stream, as_rows = (
        mgu.fit(mgu.Recipe(model, optimizer="sgd", batch_size=4, window=window), data, steps=3, key=KEY, hyper=hyper)[0]
        for window, data in ((50, stream), (None, rows))
    )
    assert np.abs(as_stream.params.h0.layers[0]).max() > 1e-4
    for got, wanted in zip(*map(jax.tree.leaves, (as_stream.params, as_rows.params)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    # Of the windows that follow it gets none.
    state = mgu.start(recipe := mgu.Recipe(model, optimizer="sgd", batch_size=4, window=10), KEY, hyper)
    first, _ = train.run_steps(state, hyper, stream, recipe=recipe, steps=1)
    second, _ = train.run_steps(first, hyper, stream, recipe=recipe, steps=4)
    assert np.abs(first.params.h0.layers[0]).max() > 1e-4
    np.testing.assert_array_equal(second.params.h0.layers[0], first.params.h0.layers[0])


def test_a_stream_is_evaluated_from_its_beginning_with_the_state_carried():
    stream, params = mgu.Stream(tokens()[:-1], tokens()[1:]), WORDS.init(KEY)
    (score,) = mgu.evaluate(WORDS, params, stream, (losses.cross_entropy,), batch_size=1, window=25)
    whole = losses.cross_entropy(
        WORDS.apply(params, jnp.asarray(stream.xs[:200, None])), jnp.asarray(stream.targets[:200, None])
    )
    np.testing.assert_allclose(score, whole, rtol=1e-5)


def test_a_stream_resumes_to_the_same_bits():
    stream, recipe = mgu.Stream(tokens()[:-1], tokens()[1:]), mgu.Recipe(WORDS, batch_size=4, window=5)
    states = []
    whole, _ = mgu.fit(recipe, stream, steps=24, key=KEY, steps_per_call=8, on_call=lambda s, *_: states.append(s))
    resumed, _ = mgu.fit(recipe, stream, steps=24, key=KEY, steps_per_call=8, state=states[0])
    assert same(whole, resumed)


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
        return train.run_steps(mgu.start(recipe, KEY), mgu.Hyper(dropout=rate), data, recipe=recipe, steps=2)[1]

    traced = jax.vmap(values_of)(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(traced[0], plain[:2], rtol=1e-6)


# What is measured, and what follows


def test_the_best_parameters_are_kept_and_patience_ends_the_run():
    """A learning rate that is far too large makes the score worse and worse after the first chunk."""
    data = samples()
    recipe, seen = mgu.Recipe(LAST, optimizer="sgd", batch_size=8), []

    def on_call(state, values, scores):
        seen.append((int(state.step), scores["cross_entropy"], state.params))

    validation = mgu.Validation(data, (losses.cross_entropy, losses.accuracy), higher_is_better=False, patience=3)
    state, values = mgu.fit(
        recipe,
        data,
        steps=200,
        key=KEY,
        hyper=mgu.Hyper(50.0),
        steps_per_call=2,
        validation=validation,
        on_call=on_call,
    )
    step, score, params = min(seen, key=lambda row: row[1])
    assert int(state.best.step) == step
    np.testing.assert_allclose(state.best.score, score, rtol=1e-6)
    assert same(state.best.params, params)
    assert len(values) == int(state.step) == step + 3 * 2 < 200
    assert int(state.best.waited) == 3
    further, values = mgu.fit(recipe, data, steps=200, key=KEY, steps_per_call=2, state=state, validation=validation)
    assert int(further.step) == int(state.step)
    assert len(values) == 0


def test_the_zoneout_of_a_run_is_validated_as_that_of_a_model():
    """Its expectation is another function than none at all, by whichever way the rate came."""
    data, scores = samples(), []
    validation = mgu.Validation(data, (losses.cross_entropy,), higher_is_better=False)
    for model, hyper in ((mgu.Model(3, (5,), 2, readout="last", zoneout=0.6), {}), (LAST, {"zoneout": 0.6})):
        recipe = mgu.Recipe(model, batch_size=8)
        state, _ = mgu.fit(recipe, data, steps=4, key=KEY, hyper=mgu.Hyper(**hyper), validation=validation)
        (alone,) = mgu.evaluate(model, state.params, data, (losses.cross_entropy,), **hyper)
        np.testing.assert_allclose(state.best.score, alone, rtol=1e-6)
        scores.append(alone)
    np.testing.assert_allclose(*scores, rtol=1e-6)
    (without,) = mgu.evaluate(LAST, state.params, data, (losses.cross_entropy,))
    assert abs(without - alone) > 1e-4


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_numbers_that_are_arrays_do_not_widen_half_precision(name):
    """By the types alone, and once in steps that are swept, whose numbers all are."""
    model, half = mgu.Model(3, (5,), 2, readout="last", dtype=jnp.bfloat16), {jnp.dtype(jnp.bfloat16)}
    data = samples()._replace(xs=jnp.asarray(samples().xs, jnp.bfloat16))
    recipe = mgu.Recipe(model, optimizer=name, batch_size=8, schedule="cosine", total_steps=4)
    hyper = mgu.Hyper(learning_rate=jnp.float32(0.01), clip_norm=jnp.float32(1.0), weight_decay=jnp.float32(0.01))
    state = mgu.start(recipe, KEY, hyper)
    after, _ = jax.eval_shape(partial(train.run_steps, recipe=recipe, steps=4), state, hyper, data)
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == half
    if name == "adamw":
        _, values = train.run_steps(state, hyper, data, recipe=recipe, steps=4)
        swept, together = mgu.sweep(recipe, data, hyper=hyper, keys=KEY[None], steps=4)
        assert {leaf.dtype for leaf in jax.tree.leaves(swept.members.params)} == half
        np.testing.assert_allclose(together[0], values, rtol=0.02)


def test_validation_now_and_then():
    data, names = samples(), []
    validation = mgu.Validation(data, (losses.accuracy,), every=3)
    mgu.fit(
        mgu.Recipe(LAST, batch_size=8), data, steps=16, key=KEY, steps_per_call=2, validation=validation,
        on_call=lambda state, values, scores: names.append((int(state.step), sorted(scores))),
    )  # fmt: skip
    assert [step for step, scores in names if scores == ["accuracy"]] == [6, 12, 16]


def test_validation_resumes_to_the_same_bits():
    data, states = samples(), []
    options = {"steps": 20, "key": KEY, "steps_per_call": 4, "validation": mgu.Validation(data, (losses.accuracy,))}
    recipe = mgu.Recipe(LAST, batch_size=8)
    whole, _ = mgu.fit(recipe, data, **options, on_call=lambda s, *_: states.append(s))
    resumed, _ = mgu.fit(recipe, data, **options, state=states[1])
    assert same(whole, resumed)


def test_the_last_scores_stand_beside_the_progress(capsys):
    """Also after chunks that are not validated."""
    validation = mgu.Validation(samples(), (losses.accuracy,), every=2)
    mgu.fit(
        mgu.Recipe(LAST, batch_size=8),
        samples(),
        steps=4,
        key=KEY,
        steps_per_call=1,
        validation=validation,
        progress=True,
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert ["accuracy" in line for line in lines] == [False, True, True, True]


def test_a_chunk_that_is_done_is_reported_before_the_next_ones_data_fail():
    def source(step):
        if step >= 4:
            raise OSError("no more")
        return samples(8)

    seen = []
    with pytest.raises(OSError, match=r"^no more$"):
        mgu.fit(
            mgu.Recipe(LAST, batch_size=8),
            source,
            steps=6,
            key=KEY,
            steps_per_call=2,
            on_call=lambda state, *_: seen.append(int(state.step)),
        )
    assert seen == [2, 4]


def test_data_that_fail_where_patience_ends_the_run_do_not_matter():
    def source(step):
        if step >= 4:
            raise RuntimeError("no more data")
        return jax.tree.map(lambda a: a[:8], samples())

    validation = mgu.Validation(samples(), (losses.cross_entropy,), higher_is_better=False, patience=1)
    options = {"steps": 9, "key": KEY, "hyper": mgu.Hyper(50.0), "steps_per_call": 2, "validation": validation}
    state, values = mgu.fit(mgu.Recipe(LAST, optimizer="sgd", batch_size=8), source, **options)
    assert int(state.step) == len(values) == 4


def test_metrics_of_one_name_are_told_apart():
    metrics = (losses.accuracy, lambda ys, targets: ys.sum(), losses.accuracy)
    assert mgu.Validation(samples(), metrics).names == ["accuracy", "metric 1", "metric 2"]
