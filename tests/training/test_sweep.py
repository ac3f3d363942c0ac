"""A sweep is the run of ``fit``, many times over, in one program."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.gradients import relative_error
from mgu_jax.training import evaluate, losses
from mgu_jax.training.hyper import as_settings, per_member
from mgu_jax.training.sweep import member_rows, run_members
from tests.same import same

KEYS = jax.random.split(jax.random.key(11), 2)
MODEL = mgu.Model(3, (5,), 2, readout="last")
RECIPE = mgu.Recipe(MODEL, batch_size=8)

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


def samples(count=24):
    xs = np.random.default_rng(0).standard_normal((count, 6, 3)).astype(np.float32)
    return mgu.Data(xs, (xs.sum((1, 2)) > 0).astype(np.int32))


GRID = mgu.grid(learning_rate=(1e-3, 3e-2), forget_bias=(-1.0, 1.0))
VALIDATION = mgu.Validation(samples(), (losses.cross_entropy,), higher_is_better=False)


def run(**options):
    return mgu.sweep(RECIPE, samples(), **({"hyper": GRID, "keys": KEYS, "steps": 10, "steps_per_call": 5} | options))


def test_settings_on_a_grid_and_at_random():
    np.testing.assert_allclose(GRID.learning_rate, [1e-3, 1e-3, 3e-2, 3e-2])
    np.testing.assert_allclose(GRID.forget_bias, [-1, 1, -1, 1])
    assert GRID.weight_decay == 0.0
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


def test_every_member_is_the_run_alone():
    """Order of samples, initial values, validation and all; float32 sums may be taken in another order under vmap."""
    state, values = run(validation=VALIDATION)
    assert values.shape == (8, 10)
    each = as_settings(GRID)[0]
    for i in range(8):
        n, s = divmod(i, 2)
        hyper = jax.tree.map(lambda a, n=n: a[n], each)
        alone, alone_values = mgu.fit(
            RECIPE, samples(), steps=10, key=KEYS[s], hyper=hyper, steps_per_call=5, validation=VALIDATION
        )
        np.testing.assert_allclose(values[i], alone_values, rtol=2e-5)
        mine = jax.tree.map(lambda a, i=i: a[i], state.members)
        np.testing.assert_allclose(mine.best.score, alone.best.score, rtol=2e-5)
        assert int(mine.best.step) == int(alone.best.step)
        for got, wanted in zip(jax.tree.leaves(mine.params), jax.tree.leaves(alone.params), strict=True):
            assert relative_error(got, wanted) < 1e-4


@pytest.mark.parametrize("options", [{"at_once": 3}, {"devices": 2}], ids=["in parts", "on two devices"])
def test_where_and_how_many_at_once_changes_nothing(options):
    right, values = run()
    state, others = run(**options)
    np.testing.assert_allclose(others, values, rtol=2e-5)
    for got, wanted in zip(jax.tree.leaves(state.members.params), jax.tree.leaves(right.members.params), strict=True):
        assert relative_error(got, wanted) < 1e-4
    if "devices" in options:
        assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(state.members.params))


def test_a_member_that_is_not_finite_is_frozen_and_its_neighbours_do_not_notice():
    def with_rate(rate):
        return run(hyper=mgu.Hyper(learning_rate=jnp.array([1e-2, rate, 3e-2])), steps=15, validation=VALIDATION)

    (healthy, values), (broken, others) = with_rate(1e-2), with_rate(1e38)
    at = np.asarray(broken.stopped)
    assert at.tolist()[:2] + at.tolist()[4:] == [-1] * 4
    assert all(0 <= step < 15 for step in at[2:4])
    for i in (0, 1, 4, 5):
        assert same(*(jax.tree.map(lambda a, i=i: a[i], state.members) for state in (healthy, broken)))
        np.testing.assert_array_equal(values[i], others[i])
    for i in (2, 3):
        assert np.isnan(others[i, at[i] :]).all()
        assert np.isfinite(others[i, : at[i]]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(broken.members.params))
    rows = member_rows(broken, mgu.Hyper(learning_rate=jnp.array([1e-2, 1e38, 3e-2])))
    assert [row["frozen_at"] for row in rows] == [None, None, int(at[2]), int(at[3]), None, None]
    assert (rows[5]["setting"], rows[5]["seed"]) == (2, 1)


def test_at_once_bounds_the_memory():
    """Of training and of validation: what four members need one after the other is less than all at once."""
    state, hyper = (
        mgu.start(RECIPE, KEYS[:1], GRID, validation=VALIDATION),
        per_member(GRID, 1)._replace(weight_decay=jnp.zeros(4)),
    )
    each = jax.tree.map(lambda a: jnp.broadcast_to(jnp.asarray(a), (4,)), hyper)
    data = samples(960)

    def needs(at_once):
        training = run_members.lower(state.members, state.stopped, each, data, recipe=RECIPE, steps=2, at_once=at_once)
        validating = evaluate._measure_members.lower(
            state.members.params, None, {}, data, MODEL, (losses.cross_entropy,), at_once, None
        )
        return [program.compile().memory_analysis().temp_size_in_bytes for program in (training, validating)]

    (less, few), (more, many) = needs(1), needs(None)
    assert less < 0.6 * more
    assert few < 0.5 * many


def test_a_sweep_ends_where_all_members_are_frozen(capsys):
    hyper = mgu.Hyper(learning_rate=jnp.array([1e38, 1e38]))
    state, values = run(hyper=hyper, keys=KEYS[:1], progress=True, on_call=lambda *_: "a text")
    assert int(state.step) == values.shape[1] == 5
    assert "loss nan, a text, 2 of 2 members frozen" in capsys.readouterr().out
    row = member_rows(state, hyper)[0]
    assert (row["clip_norm"], row["frozen_at"]) == (None, int(state.stopped[0]))
    json.dumps(row, allow_nan=False)


def test_a_validation_may_come_later():
    state, _ = run(steps=5)
    state, _ = run(state=state, validation=VALIDATION)
    assert np.isfinite(state.members.best.score).all()


@pytest.mark.slow
def test_a_neighbour_that_is_not_there_changes_nothing_either():
    """The sweep without the broken member at all."""
    with_it, without = jnp.array([1e-2, 1e38, 3e-2]), jnp.array([1e-2, 3e-2])
    two, three = (run(hyper=mgu.Hyper(learning_rate=rates))[0] for rates in (without, with_it))
    for i, j in ((0, 0), (1, 1), (2, 4), (3, 5)):
        assert same(jax.tree.map(lambda a: a[i], two.members), jax.tree.map(lambda a: a[j], three.members))  # noqa: B023


def test_resumes_to_the_same_bits():
    states, seen = [], []

    def on_call(state, values, scores):
        states.append(state)
        seen.append({name: score.shape for name, score in scores.items()})

    whole, values = run(validation=VALIDATION, on_call=on_call)
    assert seen == [{VALIDATION.metrics[0].__name__: (len(whole.stopped),)}] * len(states)
    resumed, rest = run(validation=VALIDATION, state=states[0])
    assert same(whole, resumed)
    np.testing.assert_array_equal(values[:, 5:], rest)


def test_one_trace_a_configuration():
    traces = []

    def loss(ys, targets):
        traces.append(1)
        return losses.cross_entropy(ys, targets)

    recipe = mgu.Recipe(MODEL, loss, batch_size=8)
    for rate in (1e-3, 1e-2):
        mgu.sweep(recipe, samples(), hyper=GRID._replace(learning_rate=rate), keys=KEYS, steps=10, steps_per_call=5)
    assert len(traces) == 1


def test_the_best_member_comes_out_as_an_ordinary_pytree():
    state, _ = run(validation=VALIDATION)
    best = mgu.best_member(state, GRID, VALIDATION)
    rows = member_rows(state, GRID)
    assert best.score == min(row["score"] for row in rows)
    row = rows[best.setting * 2 + best.seed]
    assert row["score"] == best.score
    assert row["learning_rate"] == float(best.hyper.learning_rate) == float(GRID.learning_rate[best.setting])
    (score,) = mgu.evaluate(MODEL, best.params, samples(), (losses.cross_entropy,))
    np.testing.assert_allclose(score, best.score, rtol=1e-5)


@pytest.mark.slow
def test_streams_and_noise_are_swept_too():
    tokens = np.random.default_rng(0).integers(0, 7, 101).astype(np.int32)
    stream, model = mgu.Stream(tokens[:-1], tokens[1:]), mgu.Model(7, (6,), 7, embedding_size=4)
    recipe = mgu.Recipe(model, batch_size=2, window=5)
    hyper = mgu.Hyper(dropout=jnp.array([0.0, 0.5]))
    state, values = mgu.sweep(
        recipe, stream, hyper=hyper, keys=KEYS[:1], steps=6, steps_per_call=3,
        validation=mgu.Validation(stream, (losses.cross_entropy,), higher_is_better=False),
    )  # fmt: skip
    alone, alone_values = mgu.fit(recipe, stream, steps=6, key=KEYS[0], steps_per_call=3)
    np.testing.assert_allclose(values[0], alone_values, rtol=2e-5)
    assert not np.allclose(values[0], values[1])
    (score,) = mgu.evaluate(model, alone.params, stream, (losses.cross_entropy,), batch_size=2, window=5)
    assert float(state.members.best.score[0]) <= score * (1 + 1e-5)


def test_zoneout_is_validated_with_each_members_own():
    state, _ = run(hyper=mgu.Hyper(zoneout=jnp.array([0.0, 0.6])), validation=VALIDATION, steps=3)
    for i, rate in enumerate((0.0, 0.0, 0.6, 0.6)):
        params = jax.tree.map(lambda a, i=i: a[i], state.members.best.params)
        (score,) = mgu.evaluate(MODEL, params, samples(), VALIDATION.metrics, zoneout=rate)
        np.testing.assert_allclose(state.members.best.score[i], score, rtol=1e-5)


@pytest.mark.slow
def test_a_frozen_member_is_never_the_best():
    hyper = mgu.Hyper(learning_rate=jnp.array([1e-2, 1e38]))
    state, _ = run(hyper=hyper, validation=VALIDATION)
    assert mgu.best_member(state, hyper, VALIDATION).setting == 0
    none, _ = run(hyper=mgu.Hyper(learning_rate=1e38), validation=VALIDATION)
    with pytest.raises(ValueError, match="all were frozen before their first validation"):
        mgu.best_member(none, mgu.Hyper(), VALIDATION)


def test_a_member_starts_as_a_run_does():
    state, _ = run(steps=1, hyper=mgu.Hyper(learning_rate=0.0), steps_per_call=1)
    for s in range(2):
        params = mgu.start(RECIPE, KEYS[s]).params
        assert same(jax.tree.map(lambda a, s=s: a[s], state.members.params), params)
