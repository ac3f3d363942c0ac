"""Metrics and outputs over a data set, batch by batch, and what a validation measures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import losses
from mgu_jax.training.evaluate import Evaluator
from tests.rejects import rejects
from tests.training.common import KEY, LAST, TAGS, WORDS, samples, stream

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


def test_evaluate_weighs_batches_by_their_samples(data, recipe):
    params = recipe.model.init(KEY)
    metrics = (losses.cross_entropy, losses.accuracy)
    whole = mgu.evaluate(recipe.model, params, data, metrics)
    parts = mgu.evaluate(recipe.model, params, data, metrics, batch_size=7)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    guesses = recipe.model.apply(params, data.xs.swapaxes(0, 1)).argmax(-1)
    assert abs(whole[1] - np.mean(guesses == data.targets)) < 1e-6
    every_step = mgu.Model(3, (3,), 4)
    empty = mgu.Data(data.xs, jnp.zeros(data.xs.shape[:2], int), jnp.zeros(len(data.xs), int))
    assert np.isnan(mgu.evaluate(every_step, every_step.init(KEY), empty, (losses.cross_entropy,))).all()


@pytest.mark.filterwarnings("ignore")  # an error instead of NumPy's warning would hide what is tested
def test_a_model_of_another_class_can_be_trained_and_evaluated(data):
    """No other model needs the parameters that only ``mgu_jax.Model`` has."""

    class Other:
        def init(self, key, forget_bias, initial_scale):
            return {"W_y": {"kernel": jnp.ones((3, 2))}, "scale": 1.0}

        def apply(self, params, xs, **noise):
            return params["scale"] * xs.mean(0) @ params["W_y"]["kernel"]

    class OnlyApplies:
        apply = Other.apply

    recipe = mgu.Recipe(Other(), batch_size=8)
    state, _ = mgu.fit(recipe, data, steps=1, key=KEY)
    metrics = (losses.accuracy,)
    assert mgu.evaluate(OnlyApplies(), state.params, data, metrics) == mgu.evaluate(
        Other(), state.params, data, metrics
    )


def test_one_member_keeps_its_axis(data, recipe):
    """``np.float64`` of an array of one entry is a number before NumPy 2.4."""
    members = jax.tree.map(lambda a: a[None], recipe.model.init(KEY))
    (accuracy,) = Evaluator(recipe.model, data, (losses.accuracy,), 40).scores_of_members(members, {})
    assert accuracy.shape == (1,)


def test_samples_of_a_model_that_reads_out_once_weigh_equally():
    """They weigh equally however they are cut into batches, and whatever their lengths are."""
    rng = np.random.default_rng(0)
    xs, targets = rng.standard_normal((10, 6, 3)).astype(np.float32), rng.standard_normal((10, 2)).astype(np.float32)
    data, params = mgu.Data(xs, targets, np.array([6] * 5 + [1] * 5, np.int32)), LAST.init(KEY)
    ys = LAST.apply(params, xs.swapaxes(0, 1), lengths=data.lengths)
    for size in (10, 5, 3):
        (score,) = mgu.evaluate(LAST, params, data, (losses.squared_error,), batch_size=size)
        np.testing.assert_allclose(score, np.mean((ys - targets) ** 2), rtol=1e-6)


def test_a_stream_is_evaluated_from_its_beginning_with_the_state_carried():
    data, params = stream(), WORDS.init(KEY)
    (score,) = mgu.evaluate(WORDS, params, data, (losses.cross_entropy,), batch_size=1, window=25)
    whole = losses.cross_entropy(
        WORDS.apply(params, jnp.asarray(data.xs[:200, None])), jnp.asarray(data.targets[:200, None])
    )
    np.testing.assert_allclose(score, whole, rtol=1e-5)


def test_zoneout_from_hyper_is_validated_like_zoneout_of_the_model():
    """Evaluation takes the expectation of zoneout, which is a different function from no zoneout."""
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


def test_metrics_with_the_same_name_get_different_names():
    metrics = (losses.accuracy, lambda ys, targets: ys.sum(), losses.accuracy)
    assert mgu.Validation(samples(), metrics).names == ["accuracy", "metric 1", "metric 2"]


def test_predict_returns_the_outputs_of_all_samples():
    data = samples(10)
    for model in (LAST, TAGS):
        params = model.init(KEY)
        ys = mgu.predict(model, params, data, batch_size=4)
        whole = np.asarray(model.apply(params, data.xs.swapaxes(0, 1)))
        assert isinstance(ys, np.ndarray)
        np.testing.assert_allclose(ys, whole.swapaxes(0, 1) if model is TAGS else whole, rtol=0, atol=1e-6)
    assert ys.shape == (10, 6, 2)


def test_predict_agrees_with_evaluate_and_needs_no_targets():
    data, params = samples(), LAST.init(KEY)
    ys = mgu.predict(LAST, params, data, batch_size=7)
    (accuracy,) = mgu.evaluate(LAST, params, data, (losses.accuracy,))
    np.testing.assert_allclose(np.mean(ys.argmax(-1) == data.targets), accuracy, rtol=1e-6)
    np.testing.assert_array_equal(mgu.predict(LAST, params, data._replace(targets=None), batch_size=7), ys)


def test_predict_stops_at_the_lengths():
    data, params = samples(5)._replace(lengths=np.array([6, 2, 4, 1, 0])), LAST.init(KEY)
    spoilt = data._replace(xs=np.where(np.arange(6)[:, None] >= data.lengths[:, None, None], np.nan, data.xs))
    np.testing.assert_array_equal(mgu.predict(LAST, params, spoilt), mgu.predict(LAST, params, data))


@pytest.mark.parametrize("rows", [1, 4])
def test_predict_carries_the_state_through_a_stream(rows):
    data, params = stream(), WORDS.init(KEY)
    length = 202 // rows // 5 * 5
    ys = mgu.predict(WORDS, params, data, batch_size=rows, window=5)
    cut = data.xs[: 202 // rows * rows].reshape(rows, -1)[:, :length]
    whole = WORDS.apply(params, jnp.asarray(cut.T))
    assert ys.shape == (rows, length, 7)
    np.testing.assert_allclose(ys.swapaxes(0, 1), whole, rtol=0, atol=1e-6)


def test_predict_is_without_noise_and_takes_the_expectation_of_zoneout():
    data, params = samples(), LAST.init(KEY)
    noisy = mgu.Model(3, (5,), 2, readout="last", dropout=0.5)
    np.testing.assert_array_equal(mgu.predict(noisy, params, data), mgu.predict(LAST, params, data))
    zoned = mgu.Model(3, (5,), 2, readout="last", zoneout=0.6)
    one, other = mgu.predict(zoned, params, data), mgu.predict(LAST, params, data, zoneout=0.6)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert np.abs(other - mgu.predict(LAST, params, data)).max() > 1e-4


def absolute_error(ys, targets):
    return jnp.abs(ys - targets).mean()


@pytest.fixture(scope="module")
def sums():
    """Sums of sequences, and the recipe of a run that a user's own loss trains, from a good start to a bad end."""
    xs = np.random.default_rng(0).standard_normal((16, 6, 3)).astype(np.float32)
    data = mgu.Data(xs, xs.sum((1, 2))[:, None])
    return data, mgu.Recipe(mgu.Model(3, (5,), 1, readout="last"), absolute_error, "adam", batch_size=16)


def test_a_validation_on_the_runs_own_loss_keeps_the_smallest(sums):
    """Nobody said that lower is better: the metric is the recipe's loss. The scores rise and fall."""
    data, recipe = sums
    validation = mgu.Validation(data, (absolute_error,))
    hyper, scores = mgu.Hyper(learning_rate=0.5), []
    options = {"steps": 10, "steps_per_call": 1, "hyper": hyper, "validation": validation}
    on_call = lambda state, losses, seen: scores.append(seen["absolute_error"])  # noqa: E731
    state, _ = mgu.fit(recipe, data, key=KEY, on_call=on_call, **options)
    assert min(scores) < scores[-1] != max(scores)
    assert (float(state.best.score), int(state.best.step)) == (np.float32(min(scores)), np.argmin(scores) + 1)
    swept, _ = mgu.sweep(recipe, data, keys=KEY[None], **options)
    np.testing.assert_allclose(mgu.best_member(swept, hyper, validation).score, min(scores), rtol=1e-5)


def test_a_best_score_of_the_other_direction_is_forgotten(sums):
    """A run that resumes with a loss in place of an accuracy would never find a better score than zero."""
    data, recipe = sums
    higher = mgu.Validation(data, (lambda ys, targets: ys.mean(),), higher_is_better=True)
    first, _ = mgu.fit(recipe, data, steps=1, key=KEY, validation=higher)
    assert bool(first.best.higher)
    state, _ = mgu.fit(recipe, data, steps=2, key=KEY, state=first, validation=mgu.Validation(data, (absolute_error,)))
    assert not bool(state.best.higher)
    assert int(state.best.step) == 2


@pytest.mark.parametrize("known", [202, 200, 3])
def test_a_stream_that_continues_another(known):
    """Metrics and outputs are those of the second part of the whole stream, also if the first fills no window."""
    whole, params = stream(202 + 60), WORDS.init(KEY)
    before, data = (mgu.Stream(*(a[part] for a in whole[:2])) for part in (slice(202 - known, 202), slice(202, None)))
    ys = WORDS.apply(params, jnp.asarray(whole.xs[202 - known :, None]))[known:]
    right = losses.cross_entropy(ys, jnp.asarray(data.targets[:, None]))
    options = {"batch_size": 1, "window": 20, "after": before}
    (score,) = mgu.evaluate(WORDS, params, data, (losses.cross_entropy,), **options)
    np.testing.assert_allclose(score, right, rtol=1e-5)
    (unaware,) = mgu.evaluate(WORDS, params, data, (losses.cross_entropy,), batch_size=1, window=20)
    assert abs(unaware - right) > 1e-5
    outputs = mgu.predict(WORDS, params, data, **options)
    np.testing.assert_allclose(outputs.swapaxes(0, 1), ys, rtol=0, atol=1e-6)


def test_a_validation_continues_the_stream_of_the_training():
    train, later = stream(100), stream(141)._replace(resets=np.zeros(141, bool))
    validation = mgu.Validation(later, (losses.cross_entropy,), after=train)
    recipe = mgu.Recipe(WORDS, batch_size=4, window=10)
    options = {"steps": 3, "validation": validation}
    state, _ = mgu.fit(recipe, train, key=KEY, **options)
    (score,) = mgu.evaluate(WORDS, state.params, later, (losses.cross_entropy,), batch_size=1, window=10, after=train)
    np.testing.assert_allclose(state.best.score, score, rtol=1e-6)
    members, _ = mgu.sweep(recipe, train, keys=KEY[None], hyper=mgu.Hyper(), **options)
    np.testing.assert_allclose(members.members.best.score, [score], rtol=1e-5)


def test_a_stream_to_continue_that_does_not_fit():
    data, params, metrics = stream(), WORDS.init(KEY), (losses.accuracy,)
    good = {"batch_size": 1, "window": 5}
    for options, name, rule, got in (
        ({"batch_size": 2, "window": 5, "after": data}, "batch_size", "1 where data continue a stream", "2"),
        (good | {"after": samples()}, "after", "a Stream(xs, targets)", "a Data"),
        (good | {"after": data._replace(xs=data.xs + 1.0)}, "after.xs", "tokens, whole numbers [L]", "float32 [L]"),
        (good | {"after": data._replace(xs=data.xs + 7)}, "after.xs", "[0, 7), as the model's tokens", "got"),
    ):
        rejects(lambda options=options: mgu.evaluate(WORDS, params, data, metrics, **options), name, rule, got)
        rejects(lambda options=options: mgu.predict(WORDS, params, data, **options), name, rule, got)
    rejects(lambda: mgu.evaluate(LAST, LAST.init(KEY), samples(), metrics, after=data), "after", "left out", "a Stream")
    validation = mgu.Validation(data, metrics, after=data._replace(xs=data.xs + 7))
    recipe = mgu.Recipe(WORDS, batch_size=4, window=10)
    rejects(lambda: mgu.fit(recipe, data, steps=1, key=KEY, validation=validation), "validation.after.xs", "[0, 7)")
