"""Training: the chunk is the plain loop, runs repeat and resume to the same bits, and what goes wrong says so."""

import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mgu_jax as mgu
from mgu_jax.training import data as feed
from mgu_jax.training import losses as losses_of
from mgu_jax.training import step as train
from mgu_jax.training.checkpoint import Checkpoints
from mgu_jax.training.evaluate import Evaluator
from tests.same import same

KEY = jax.random.key(3)

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


@pytest.fixture(scope="module")
def data():
    """A task that can be learnt: which half of the sequence has the larger sum."""
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((40, 6, 3)).astype(np.float32)
    return mgu.Data(xs, (xs[:, 3:].sum((1, 2)) > xs[:, :3].sum((1, 2))).astype(np.int32))


@pytest.fixture(scope="module")
def recipe():
    return mgu.Recipe(mgu.Model(3, (8,), 2, readout="last"), batch_size=8)


def test_a_chunk_is_the_plain_loop(data, recipe):
    hyper = mgu.Hyper(learning_rate=0.01, weight_decay=0.1, clip_norm=0.5)
    state = mgu.start(recipe, KEY, hyper)
    together, losses = train.run_steps(state, hyper, data, recipe=recipe, steps=7)

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

    for step, rows in enumerate(feed.order(state.key, state.step, 7, 8, 40)):
        params, opt_state, value = update(params, opt_state, data.xs[rows], data.targets[rows])
        assert abs(value - losses[step]) < 1e-5
    assert int(together.step) == 7
    for a, b in zip(jax.tree.leaves(together.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_every_epoch_sees_every_sample_once_in_a_new_order():
    rows = np.asarray(feed.order(KEY, jnp.int32(0), 15, 8, 40))
    epochs = rows.reshape(3, 40)
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    ragged = np.asarray(feed.order(KEY, jnp.int32(0), 10, 7, 40)).reshape(2, 35)
    assert all(len(set(epoch)) == 35 for epoch in ragged)


@pytest.mark.parametrize(("first", "steps"), [(0, 1), (3, 1), (4, 9), (5, 5), (13, 2)])
def test_batches_do_not_depend_on_where_a_chunk_begins(first, steps):
    whole = feed.order(KEY, jnp.int32(0), 15, 8, 40)
    np.testing.assert_array_equal(feed.order(KEY, jnp.int32(first), steps, 8, 40), whole[first : first + steps])


def test_learns_and_repeats(data, recipe):
    hyper = mgu.Hyper(learning_rate=0.02)
    runs = [mgu.fit(recipe, data, steps=60, key=KEY, hyper=hyper, steps_per_call=25) for _ in range(2)]
    (state, losses), (again, losses_again) = runs
    assert losses.shape == (60,)
    assert losses[-10:].mean() < 0.5 * losses[:10].mean()
    assert same(state, again)
    np.testing.assert_array_equal(losses, losses_again)
    other, _ = mgu.fit(recipe, data, steps=60, key=jax.random.key(4), hyper=hyper, steps_per_call=25)
    assert not same(state, other)


def test_a_resumed_run_has_the_same_bits(data, recipe, tmp_path):
    whole, losses = mgu.fit(recipe, data, steps=50, key=KEY, steps_per_call=20)
    states = []
    mgu.fit(recipe, data, steps=40, key=KEY, steps_per_call=20, on_call=lambda s, *_: states.append(s))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(whole) is None
        checkpoints.save(20, states[0])
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(mgu.start(recipe, jax.random.key(99)))
    assert int(restored.step) == 20
    resumed, rest = mgu.fit(recipe, data, steps=50, key=jax.random.key(99), state=restored, steps_per_call=20)
    assert same(whole, resumed)
    np.testing.assert_array_equal(losses[20:], rest)


def test_one_trace_a_configuration(data):
    traces = []
    model = mgu.Model(3, (8,), 2, readout="last")

    def loss(ys, targets):
        traces.append(1)
        return losses_of.cross_entropy(ys, targets)

    recipe = mgu.Recipe(model, loss, batch_size=8)
    for rate in (0.1, 0.2):
        mgu.fit(recipe, data, steps=40, key=KEY, hyper=mgu.Hyper(learning_rate=rate), steps_per_call=10)
    assert len(traces) == 1


def test_all_steps_have_a_loss_of_their_own():
    """Targets [N, T, K] meet a model that reads out every step; each step's error reaches the gradient (fault 7)."""
    rng = np.random.default_rng(0)
    data = mgu.Data(
        rng.standard_normal((8, 5, 3)).astype(np.float32), rng.standard_normal((8, 5, 2)).astype(np.float32)
    )
    recipe = mgu.Recipe(mgu.Model(3, (4,), 2), losses_of.squared_error, "sgd", batch_size=8)
    state = mgu.start(recipe, KEY)
    _, losses = train.run_steps(state, mgu.Hyper(), data, recipe=recipe, steps=1)
    ys = recipe.model.apply(state.params, data.xs.swapaxes(0, 1))
    assert abs(losses[0] - np.mean((ys - data.targets.swapaxes(0, 1)) ** 2)) < 1e-6


def test_a_loss_that_is_not_finite_stops_the_run(data, recipe):
    spoilt = data._replace(xs=np.where(np.arange(40)[:, None, None] == 7, np.nan, data.xs))
    with pytest.raises(mgu.NotFinite) as caught:
        mgu.fit(recipe, spoilt, steps=20, key=KEY, steps_per_call=1)
    error = caught.value
    assert str(error) == (
        f"the loss must stay finite; it is nan at step {error.step}; the last good state is that of step {error.step}."
    )
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(error.state.params))


def test_parameters_that_are_not_finite_stop_the_run_before_anyone_sees_them(data, recipe):
    """The last update of a run, which no loss will see."""
    recipe, seen = mgu.Recipe(recipe.model, optimizer="sgd", batch_size=8), []
    with pytest.raises(mgu.NotFinite) as caught:
        mgu.fit(
            recipe, data, steps=1, key=KEY, hyper=mgu.Hyper(learning_rate=np.inf), on_call=lambda s, *_: seen.append(s)
        )
    assert str(caught.value).startswith("the parameters must stay finite; they are not at step 1;")
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(caught.value.state.params))
    assert not seen


def test_hyper_reaches_the_initial_parameters(recipe):
    plain, other = (mgu.start(recipe, KEY, hyper).params for hyper in (mgu.Hyper(), mgu.Hyper(0.1, 0, 1, 0.5, 0.1)))
    np.testing.assert_array_equal(other.layers[0].b_f, np.full(8, 0.5, np.float32))
    np.testing.assert_allclose(other.layers[0].U_f, 0.1 * plain.layers[0].U_f, rtol=1e-6)


def test_evaluate_weighs_batches_by_their_samples(data, recipe):
    params = recipe.model.init(KEY)
    metrics = (losses_of.cross_entropy, losses_of.accuracy)
    whole = mgu.evaluate(recipe.model, params, data, metrics)
    parts = mgu.evaluate(recipe.model, params, data, metrics, batch_size=7)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    guesses = recipe.model.apply(params, data.xs.swapaxes(0, 1)).argmax(-1)
    assert abs(whole[1] - np.mean(guesses == data.targets)) < 1e-6
    every_step = mgu.Model(3, (3,), 4)
    empty = mgu.Data(data.xs, jnp.zeros(data.xs.shape[:2], int), jnp.zeros(len(data.xs), int))
    assert np.isnan(mgu.evaluate(every_step, every_step.init(KEY), empty, (losses_of.cross_entropy,))).all()


@pytest.mark.filterwarnings("ignore")  # an error instead of NumPy's warning would hide what is tested
def test_a_model_of_others_is_trained_and_measured_too(data):
    """What belongs to ``mgu_jax.Model``'s parameters alone is asked of no other's."""

    class Other:
        def init(self, key, forget_bias, initial_scale):
            return {"W_y": {"kernel": jnp.ones((3, 2))}, "scale": 1.0}

        def apply(self, params, xs, **noise):
            return params["scale"] * xs.mean(0) @ params["W_y"]["kernel"]

    class OnlyApplies:
        apply = Other.apply

    recipe = mgu.Recipe(Other(), batch_size=8)
    state, _ = mgu.fit(recipe, data, steps=1, key=KEY)
    metrics = (losses_of.accuracy,)
    assert mgu.evaluate(OnlyApplies(), state.params, data, metrics) == mgu.evaluate(
        Other(), state.params, data, metrics
    )


def test_one_member_keeps_its_axis(data, recipe):
    """``np.float64`` of an array of one entry is a number before NumPy 2.4."""
    members = jax.tree.map(lambda a: a[None], recipe.model.init(KEY))
    (accuracy,) = Evaluator(recipe.model, data, (losses_of.accuracy,), 40).scores_of_members(members, {})
    assert accuracy.shape == (1,)


def test_cosine_decay_ends_at_zero(data, recipe):
    recipe = mgu.Recipe(recipe.model, schedule="cosine", total_steps=10, batch_size=8)
    states = []
    last, _ = mgu.fit(recipe, data, steps=10, key=KEY, steps_per_call=1, on_call=lambda s, *_: states.append(s.params))
    assert not same(states[-2], states[-1])
    assert same(train.run_steps(last, mgu.Hyper(), data, recipe=recipe, steps=1)[0].params, last.params)


def test_progress_prints_plain_lines_where_there_is_no_terminal(data, recipe, capsys):
    mgu.fit(recipe, data, steps=20, key=KEY, steps_per_call=10, on_call=lambda *_: "accuracy 50%", progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["10/20", "20/20"]
    assert all("loss" in line and line.endswith("accuracy 50%") for line in lines)
    mgu.fit(recipe, data, steps=20, key=KEY, steps_per_call=10)
    assert capsys.readouterr() == ("", "")


def test_progress_is_a_bar_on_a_terminal(data, recipe, monkeypatch):
    """With the steps, the loss and the caller's text in it, and no plain lines."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    mgu.fit(recipe, data, steps=20, key=KEY, steps_per_call=10, on_call=lambda *_: "accuracy 50%", progress=True)
    shown = terminal.getvalue()
    assert "20/20" in shown
    assert "accuracy 50%" in shown
    assert "\r" in shown
