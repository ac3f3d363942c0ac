"""What a loss is given beside outputs and targets: masks with holes, resets, weights, hidden states, parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import losses
from mgu_jax.training.data import Data, take
from tests.rejects import rejects
from tests.training.common import KEY, LAST, TAGS

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")

N, T, K = 12, 6, 2
RNG = np.random.default_rng(3)
XS, LABELS = RNG.standard_normal((N, T, 3)).astype(np.float32), RNG.integers(0, K, (N, T))
LENGTHS, MASK, RESETS = RNG.integers(1, T + 1, N), RNG.random((N, T)) < 0.7, RNG.random((N, T)) < 0.2
PER_STEP, PER_SAMPLE = RNG.random((N, T)).astype(np.float32), RNG.random(N).astype(np.float32)
MARKS = {"lengths": LENGTHS, "mask": MASK, "resets": RESETS}


def by_hand(model, params, marks, weights, function=losses.cross_entropy):
    """The weighted mean of a function over the steps that count, one entry at a time."""
    options = {name: mark if name == "lengths" else mark.T for name, mark in marks.items()}
    ys = model.apply(params, XS.swapaxes(0, 1), **options)
    counts = MASK * (np.arange(T) < LENGTHS[:, None]) if marks else np.ones((N, T))
    counts = counts * (weights if weights.ndim == 2 else weights[:, None])
    each = [[function(ys[t, b], LABELS[b, t]) for t in range(T)] for b in range(N)]
    return (np.array(each) * counts).sum() / counts.sum()


@pytest.mark.parametrize("weights", [PER_STEP, PER_SAMPLE], ids=["of steps", "of samples"])
def test_mask_resets_and_weights_reach_the_model_and_the_loss(weights):
    """Whole batches, a source and two devices have one value, and so has the evaluation however it is cut."""
    params = TAGS.init(KEY)
    data = mgu.Data(XS, LABELS, **MARKS, weights=weights)
    right = by_hand(TAGS, params, MARKS, weights)
    recipe = mgu.Recipe(TAGS, batch_size=N)
    start = mgu.start(recipe, KEY)._replace(params=params)
    for given, devices in ((data, 1), (lambda step: data, 1), (data, 2))[: 3 if weights is PER_STEP else 1]:
        _, values = mgu.fit(recipe, given, steps=1, key=KEY, state=start, devices=devices)
        np.testing.assert_allclose(values[0], right, rtol=1e-5)
    for size in (N, 5):
        np.testing.assert_allclose(
            mgu.evaluate(TAGS, params, data, (losses.cross_entropy,), batch_size=size), [right], rtol=1e-5
        )


def test_what_stands_in_a_hole_does_not_matter():
    """Inputs, targets and tokens at holes and after the lengths may be anything, nan included."""
    used = MASK & (np.arange(T) < LENGTHS[:, None])
    targets = RNG.random((N, T, K)).astype(np.float32)
    recipe = mgu.Recipe(TAGS, losses.squared_error, batch_size=4)
    runs = [
        mgu.fit(recipe, mgu.Data(xs, t, **MARKS), steps=2, key=KEY)
        for xs, t in (
            (XS, targets),
            (np.where(used[..., None], XS, np.nan), np.where(used[..., None], targets, np.nan)),
        )
    ]
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    words = mgu.Model(3, (4,), K, embedding_size=2)
    tokens = np.where(used, LABELS, 99)
    data = mgu.Data(tokens, np.where(used, LABELS, -1), **MARKS)
    assert np.isfinite(mgu.evaluate(words, words.init(KEY), data, (losses.accuracy,))).all()
    rejects(
        lambda: mgu.evaluate(words, words.init(KEY), data._replace(mask=None), (losses.accuracy,)),
        "data.xs",
        "[0, 3)",
        "99",
    )


def test_weights_of_a_model_that_reads_out_once():
    params, labels = LAST.init(KEY), LABELS[:, 0]
    ys = LAST.apply(params, XS.swapaxes(0, 1), lengths=LENGTHS, mask=MASK.T)
    each = np.array([losses.cross_entropy(ys[b], labels[b]) for b in range(N)])
    data = mgu.Data(XS, labels, lengths=LENGTHS, mask=MASK, weights=PER_SAMPLE)
    for size in (N, 5):
        (score,) = mgu.evaluate(LAST, params, data, (losses.cross_entropy,), batch_size=size)
        np.testing.assert_allclose(score, (each * PER_SAMPLE).sum() / PER_SAMPLE.sum(), rtol=1e-5)


def test_the_marks_of_a_stream_are_cut_like_its_steps():
    flat = {name: mark.reshape(-1) for name, mark in {"mask": MASK, "resets": RESETS, "weights": PER_STEP}.items()}
    stream = mgu.Stream(XS.reshape(-1, 3), LABELS.reshape(-1), **flat)
    window = take(stream, 1, 3, 5)
    assert isinstance(window, Data)
    for name, mark in flat.items():
        np.testing.assert_array_equal(getattr(window, name), mark.reshape(3, -1)[:, 5:10])
    params = TAGS.init(KEY)
    whole = {name: jnp.asarray(mark)[:, None] for name, mark in flat.items()}
    ys = TAGS.apply(params, stream.xs[:, None], mask=whole["mask"], resets=whole["resets"])
    right = losses.cross_entropy(ys, stream.targets[:, None], whole["mask"], whole["weights"])
    (score,) = mgu.evaluate(TAGS, params, stream, (losses.cross_entropy,), batch_size=1, window=8)
    np.testing.assert_allclose(score, right, rtol=1e-5)
    recipe = mgu.Recipe(TAGS, batch_size=3, window=4)
    assert np.isfinite(mgu.fit(recipe, stream, steps=7, key=KEY)[1]).all()


def positional(ys, targets, valid):
    return losses.cross_entropy(ys, targets, valid)


def optional(ys, targets, valid=None):
    return losses.cross_entropy(ys, targets, valid)


def any_number(*arguments):
    return losses.cross_entropy(*arguments)


def by_name(ys, targets, *, mask):
    return losses.cross_entropy(ys, targets, mask)


def any_name(ys, targets, **options):
    return losses.cross_entropy(ys, targets, **options)


def weighted(ys, targets, mask=None, weights=2.0):
    return losses.cross_entropy(ys, targets, mask) * weights / 2


@pytest.mark.parametrize("function", [positional, optional, any_number, by_name, any_name, weighted])
def test_a_mask_is_given_by_name_or_as_the_third_argument(function):
    params = TAGS.init(KEY)
    for marks in ({}, {"lengths": LENGTHS}):
        data = mgu.Data(XS, LABELS, **marks)
        mine, right = (mgu.evaluate(TAGS, params, data, (f,)) for f in (function, losses.cross_entropy))
        assert mine == right


def penalised(ys, targets, mask=None, *, hs, params):
    """Cross entropy with a penalty on the activity, and on the readout; it reports all three."""
    parts = {"entropy": losses.cross_entropy(ys, targets, mask)}
    parts |= {"activity": losses.mean((hs**2).mean(-1), mask), "size": (params.W_y**2).sum()}
    return parts["entropy"] + 0.1 * parts["activity"] + 0.01 * parts["size"], parts


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_loss_sees_hidden_states_and_parameters(devices):
    """Those of two layers side by side; their gradient reaches the parameters."""
    model = mgu.Model(3, (4, 5), K, dropout=0.0, residual=True)
    params, data = model.init(KEY), mgu.Data(XS, LABELS, LENGTHS)

    def loss(params):
        ys, hs = model.apply(params, XS.swapaxes(0, 1), lengths=LENGTHS, return_hidden=True)
        assert [h.shape for h in hs] == [(T, N, 4), (T, N, 5)]
        mask = np.arange(T)[:, None] < LENGTHS
        value = losses.cross_entropy(ys, LABELS.T, mask) + 0.01 * (params.W_y**2).sum()
        return value + 0.1 * losses.mean((jnp.concatenate(hs, -1) ** 2).mean(-1), mask)

    right, gradient = jax.value_and_grad(loss)(params)
    recipe = mgu.Recipe(model, penalised, "sgd", batch_size=N)
    start = mgu.start(recipe, KEY)._replace(params=params)
    hyper = mgu.Hyper(learning_rate=1.0)
    state, values = mgu.fit(recipe, data, steps=1, key=KEY, hyper=hyper, state=start, devices=devices)
    np.testing.assert_allclose(values[0], right, rtol=1e-5)
    for before, after, slope in zip(*map(jax.tree.leaves, (params, state.params, gradient)), strict=True):
        np.testing.assert_allclose(before - after, slope, rtol=0, atol=1e-6)
    np.testing.assert_allclose(mgu.evaluate(model, params, data, (penalised,)), [right], rtol=1e-5)


@pytest.mark.parametrize("train", [mgu.fit, mgu.sweep])
def test_what_a_loss_returns_beside_itself_is_reported(train):
    """The means over the steps of a call, in every call; the scores of a validation are beside them."""
    data, calls = mgu.Data(XS, LABELS, LENGTHS), []
    recipe = mgu.Recipe(TAGS, penalised, batch_size=4)
    options = {"key": KEY} if train is mgu.fit else {"keys": jax.random.split(KEY, 2), "hyper": mgu.Hyper()}
    validation = mgu.Validation(data, (losses.accuracy, penalised), every=2)
    _, values = train(
        recipe,
        data,
        steps=4,
        steps_per_call=2,
        validation=validation,
        on_call=lambda *call: calls.append(call[1:]),
        **options,
    )
    names = ["accuracy", "activity", "entropy", "penalised", "size"]
    assert [sorted(seen) for _, seen in calls] == [names[1:3] + names[4:], names]
    for found, seen in calls:
        whole = seen["entropy"] + 0.1 * seen["activity"] + 0.01 * seen["size"]
        np.testing.assert_allclose(whole, found.mean(-1), rtol=1e-5)
    np.testing.assert_array_equal(np.concatenate([found for found, _ in calls], -1), values)


def test_a_model_of_the_users_own_may_give_hidden_states():
    class Own:
        init = TAGS.init
        readout = "all"

        def apply(self, params, xs, *, return_hidden=False, **options):
            ys = TAGS.apply(params, xs, **options)
            return (ys, ys**2) if return_hidden else ys

    def activity(ys, targets, hs):
        return hs.mean()

    params = TAGS.init(KEY)
    (value,) = mgu.evaluate(Own(), params, mgu.Data(XS, LABELS), (activity,))
    np.testing.assert_allclose(value, (TAGS.apply(params, XS.swapaxes(0, 1)) ** 2).mean(), rtol=1e-5)

    class Lacking(Own):
        def apply(self, params, xs):
            return TAGS.apply(params, xs)

    wrong = mgu.Data(XS, LABELS)
    rejects(
        lambda: mgu.evaluate(Lacking(), params, wrong, (activity,)), "model.apply", "return_hidden=", "(params, xs)"
    )


MARKED = mgu.Data(XS, LABELS, weights=PER_STEP)
WRONG = [
    (MARKED._replace(mask=MASK.astype(int)), "data.mask", "an array of bool", "int64 [12, 6]"),
    (MARKED._replace(mask=MASK[:, :3]), "data.mask", "[12, 6]", "[12, 3]"),
    (MARKED._replace(resets=RESETS.T), "data.resets", "[12, 6]", "[6, 12]"),
    (MARKED._replace(weights=-PER_STEP), "data.weights", "finite and at least 0", "-0."),
    (MARKED._replace(weights=PER_STEP * np.nan), "data.weights", "finite and at least 0", "nan"),
    (MARKED._replace(weights=PER_STEP[:, :2]), "data.weights", "[12], one per sample, or [12, 6]", "[12, 2]"),
    (MARKED._replace(weights=[1.0]), "data.weights", "an array", "a list"),
]


@pytest.mark.parametrize(("data", "name", "rule", "got"), WRONG, ids=[f"{row[1]} {row[3]}" for row in WRONG])
def test_marks_that_do_not_fit(data, name, rule, got):
    rejects(lambda: mgu.fit(mgu.Recipe(TAGS, batch_size=4), data, steps=1, key=KEY), name, rule, got)


def test_weights_that_nobody_takes():
    def lacking(ys, targets, mask=None):
        return ys.mean()

    params = TAGS.init(KEY)
    mine, right = (mgu.evaluate(TAGS, params, MARKED, (f,)) for f in (any_name, losses.cross_entropy))
    assert mine == right
    for call in (
        lambda: mgu.fit(mgu.Recipe(TAGS, lacking, batch_size=4), MARKED, steps=1, key=KEY),
        lambda: mgu.evaluate(TAGS, TAGS.init(KEY), MARKED, (losses.accuracy, lacking)),
    ):
        rejects(call, "lacking", "take weights, which data has", "lacking(ys, targets, mask=None)")
    rejects(
        lambda: mgu.evaluate(LAST, LAST.init(KEY), MARKED._replace(targets=LABELS[:, 0]), (losses.accuracy,)),
        "data.weights",
        "[N], one per sample, for a model that reads out once",
        "[N, 6]",
    )


def test_auxiliary_values_are_numbers():
    recipe = mgu.Recipe(TAGS, lambda ys, targets: (ys.mean(), {"all": ys}), batch_size=4)
    rejects(
        lambda: mgu.fit(recipe, mgu.Data(XS, LABELS), steps=1, key=KEY), "returns as 'all'", "a number", "[6, 4, 2]"
    )
