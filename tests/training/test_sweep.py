"""A sweep is many runs of ``fit`` in one program."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import losses
from mgu_jax.gradients import relative_error
from mgu_jax.training import evaluate
from mgu_jax.training.hyper import as_settings
from mgu_jax.training.sweep import member_rows, run_members
from tests.same import same
from tests.training.common import KEYS, LAST, Killed, kill_in_call, samples

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


RECIPE = mgu.Recipe(LAST, batch_size=8)


GRID = mgu.grid(learning_rate=(1e-3, 3e-2), forget_bias=(-1.0, 1.0))


VALIDATION = mgu.Validation(samples(), (losses.cross_entropy,))


def run(**options):
    return mgu.sweep(RECIPE, samples(), **({"hyper": GRID, "keys": KEYS, "steps": 10, "steps_per_call": 5} | options))


def test_every_member_equals_its_run_alone():
    """Order of samples, initial values and validation; vmap may only change the order of float32 sums."""
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
def test_at_once_and_devices_change_nothing(options):
    right, values = run()
    state, others = run(**options)
    np.testing.assert_allclose(others, values, rtol=2e-5)
    for got, wanted in zip(jax.tree.leaves(state.members.params), jax.tree.leaves(right.members.params), strict=True):
        assert relative_error(got, wanted) < 1e-4
    if "devices" in options:
        assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(state.members.params))


def test_a_member_that_is_not_finite_is_frozen_and_the_others_are_unaffected():
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
    """In training and in validation, four members need less memory one after another than together."""
    state, each = mgu.start(RECIPE, KEYS[:1], GRID, validation=VALIDATION), as_settings(GRID)[0]
    data = samples(960)

    def needs(at_once):
        training = run_members.lower(state.members, state.stopped, each, data, recipe=RECIPE, steps=2, at_once=at_once)
        validating = evaluate._measure_members.lower(
            state.members.params, None, {}, data, LAST, (losses.cross_entropy,), at_once, None
        )
        return [program.compile().memory_analysis().temp_size_in_bytes for program in (training, validating)]

    (less, few), (more, many) = needs(1), needs(None)
    assert less < 0.6 * more
    assert few < 0.5 * many


def test_a_sweep_ends_when_all_members_are_frozen(capsys):
    hyper = mgu.Hyper(learning_rate=jnp.array([1e38, 1e38]))
    state, values = run(hyper=hyper, keys=KEYS[:1], progress=True, on_call=lambda *_: "a text")
    assert int(state.step) == values.shape[1] == 5
    assert "loss nan, a text, 2 of 2 members frozen" in capsys.readouterr().out
    row = member_rows(state, hyper)[0]
    assert (row["clip_norm"], row["frozen_at"]) == (None, int(state.stopped[0]))
    json.dumps(row, allow_nan=False)


def test_a_validation_can_be_added_later():
    state, _ = run(steps=5)
    state, _ = run(state=state, validation=VALIDATION)
    assert np.isfinite(state.members.best.score).all()


@pytest.mark.slow
def test_leaving_out_the_broken_member_changes_nothing():
    """The others have the same bits without it."""
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


def test_one_trace_per_configuration():
    traces = []

    def loss(ys, targets):
        traces.append(1)
        return losses.cross_entropy(ys, targets)

    recipe = mgu.Recipe(LAST, loss, batch_size=8)
    for rate in (1e-3, 1e-2):
        mgu.sweep(recipe, samples(), hyper=GRID._replace(learning_rate=rate), keys=KEYS, steps=10, steps_per_call=5)
    assert len(traces) == 1


def test_best_member_is_an_ordinary_pytree():
    state, _ = run(validation=VALIDATION)
    best = mgu.best_member(state, GRID, VALIDATION)
    rows = member_rows(state, GRID)
    assert best.score == min(row["score"] for row in rows)
    row = rows[best.setting * 2 + best.seed]
    assert row["score"] == best.score
    assert row["learning_rate"] == float(best.hyper.learning_rate) == float(GRID.learning_rate[best.setting])
    (score,) = mgu.evaluate(LAST, best.params, samples(), (losses.cross_entropy,))
    np.testing.assert_allclose(score, best.score, rtol=1e-5)


@pytest.mark.slow
def test_streams_and_noise_can_be_swept():
    tokens = np.random.default_rng(0).integers(0, 7, 101).astype(np.int32)
    stream, model = mgu.Stream(tokens[:-1], tokens[1:]), mgu.Model(7, (6,), 7, embedding_size=4)
    recipe = mgu.Recipe(model, batch_size=2, window=5)
    hyper = mgu.Hyper(dropout=jnp.array([0.0, 0.5]))
    state, values = mgu.sweep(
        recipe, stream, hyper=hyper, keys=KEYS[:1], steps=6, steps_per_call=3,
        validation=mgu.Validation(stream, (losses.cross_entropy,)),
    )  # fmt: skip
    alone, alone_values = mgu.fit(recipe, stream, steps=6, key=KEYS[0], steps_per_call=3)
    np.testing.assert_allclose(values[0], alone_values, rtol=2e-5)
    assert not np.allclose(values[0], values[1])
    (score,) = mgu.evaluate(model, alone.params, stream, (losses.cross_entropy,), batch_size=2, window=5)
    assert float(state.members.best.score[0]) <= score * (1 + 1e-5)


def test_each_member_is_validated_with_its_own_zoneout():
    state, _ = run(hyper=mgu.Hyper(zoneout=jnp.array([0.0, 0.6])), validation=VALIDATION, steps=3)
    for i, rate in enumerate((0.0, 0.0, 0.6, 0.6)):
        params = jax.tree.map(lambda a, i=i: a[i], state.members.best.params)
        (score,) = mgu.evaluate(LAST, params, samples(), VALIDATION.metrics, zoneout=rate)
        np.testing.assert_allclose(state.members.best.score[i], score, rtol=1e-5)


@pytest.mark.slow
def test_a_frozen_member_is_never_the_best():
    hyper = mgu.Hyper(learning_rate=jnp.array([1e-2, 1e38]))
    state, _ = run(hyper=hyper, validation=VALIDATION)
    assert mgu.best_member(state, hyper, VALIDATION).setting == 0
    none, _ = run(hyper=mgu.Hyper(learning_rate=1e38), validation=VALIDATION)
    with pytest.raises(ValueError, match="all were frozen before their first validation"):
        mgu.best_member(none, mgu.Hyper(), VALIDATION)


@pytest.mark.parametrize("call", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_sweep_resumes_to_the_same_bits(call, tmp_path):
    """One member is frozen on the way, and is still frozen after the sweep resumed."""
    hyper = mgu.Hyper(learning_rate=jnp.array([1e-2, 1e38]))
    whole, values = run(hyper=hyper, validation=VALIDATION, steps_per_call=4)
    assert (np.asarray(whole.stopped) >= 0).tolist() == [False, False, True, True]
    options = {"hyper": hyper, "validation": VALIDATION, "steps_per_call": 4}
    with mgu.Checkpoints(tmp_path) as checkpoints, pytest.raises(Killed):
        run(checkpoints=checkpoints, on_call=kill_in_call(call), **options)
    with mgu.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [4, 8][: call - 1]
        resumed, rest = run(checkpoints=checkpoints, **options)
    assert same(resumed, whole)
    np.testing.assert_array_equal(rest, values[:, 4 * (call - 1) :])


def test_a_sweep_makes_the_next_batches_while_the_device_works():
    events, data = [], samples(8)

    def source(step):
        events.append(step)
        return data

    mgu.sweep(
        RECIPE, source, hyper=GRID, keys=KEYS, steps=6, steps_per_call=2,
        on_call=lambda state, *_: events.append(f"call {int(state.step)}"),
    )  # fmt: skip
    assert events == [0, 1, 2, 3, "call 2", 4, 5, "call 4", "call 6"]


def test_a_sweep_stops_and_is_interrupted_as_a_run_is(capsys):
    """The progress shows the best member beside the mean."""
    whole, values = run(steps_per_call=5, validation=VALIDATION, on_call=lambda *_: True, progress=True)
    assert (int(whole.step), values.shape) == (5, (8, 5))
    score = np.asarray(whole.members.best.score)
    shown = f"mean cross_entropy {score.mean():.4g}, best cross_entropy {score.min():.4g}\n"
    assert capsys.readouterr().out.endswith(shown)

    def interrupt(state, *_):
        if int(state.step) == 10:
            raise KeyboardInterrupt

    state, some = run(steps=15, validation=VALIDATION, on_call=interrupt, on_interrupt="return")
    assert (int(state.step), some.shape) == (10, (8, 10))
    np.testing.assert_array_equal(some[:, :5], values)
