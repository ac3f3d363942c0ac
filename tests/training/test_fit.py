"""A run learns, repeats and resumes to the same bits, and says what goes wrong."""

import jax
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import losses
from tests.rejects import is_one_sentence, rejects
from tests.same import same
from tests.training.common import KEY, LAST, WORDS, Killed, kill_in_call, samples, stream

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


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


def test_a_loss_that_is_not_finite_stops_the_run(data, recipe):
    spoilt = data._replace(xs=np.where(np.arange(40)[:, None, None] == 7, np.nan, data.xs))
    with pytest.raises(mgu.NotFinite) as caught:
        mgu.fit(recipe, spoilt, steps=20, key=KEY, steps_per_call=1)
    error = caught.value
    is_one_sentence(str(error), "the loss", "stay finite", f"nan at step {error.step}")
    assert f"the last good state is that of step {error.step}" in str(error)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(error.state.params))


def test_parameters_that_are_not_finite_stop_the_run_before_on_call(data, recipe):
    """No loss sees the last update of a run."""
    recipe, seen = mgu.Recipe(recipe.model, optimizer="sgd", batch_size=8), []
    with pytest.raises(mgu.NotFinite) as caught:
        mgu.fit(
            recipe, data, steps=1, key=KEY, hyper=mgu.Hyper(learning_rate=np.inf), on_call=lambda s, *_: seen.append(s)
        )
    is_one_sentence(str(caught.value), "the parameters", "stay finite", "they are not at step 1;")
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(caught.value.state.params))
    assert not seen


def test_the_best_parameters_are_kept_and_patience_ends_the_run():
    """A learning rate that is far too high makes the score worse after the first call."""
    data = samples()
    recipe, seen = mgu.Recipe(LAST, optimizer="sgd", batch_size=8), []

    def on_call(state, values, scores):
        seen.append((int(state.step), scores["cross_entropy"], state.params))

    validation = mgu.Validation(data, (losses.cross_entropy, losses.accuracy), patience=3)
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


def test_validation_comes_every_third_call_and_at_the_end():
    data, names = samples(), []
    validation = mgu.Validation(data, (losses.accuracy,), every=3)
    mgu.fit(
        mgu.Recipe(LAST, batch_size=8), data, steps=16, key=KEY, steps_per_call=2, validation=validation,
        on_call=lambda state, values, scores: names.append((int(state.step), sorted(scores))),
    )  # fmt: skip
    assert [step for step, scores in names if scores == ["accuracy"]] == [6, 12, 16]


def test_a_finished_call_is_reported_before_the_data_of_the_next_one_fail():
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

    validation = mgu.Validation(samples(), (losses.cross_entropy,), patience=1)
    options = {"steps": 9, "key": KEY, "hyper": mgu.Hyper(50.0), "steps_per_call": 2, "validation": validation}
    state, values = mgu.fit(mgu.Recipe(LAST, optimizer="sgd", batch_size=8), source, **options)
    assert int(state.step) == len(values) == 4


def resumable(kind):
    """A recipe, data and options: plain samples, with validation and noise, a stream, two devices."""
    options = {"steps": 10, "key": KEY, "steps_per_call": 4, "hyper": mgu.Hyper(dropout=0.1)}
    if kind == "validation":
        validation = mgu.Validation(samples(), (losses.accuracy,))
        return mgu.Recipe(LAST, batch_size=8), samples(), options | {"validation": validation}
    if kind == "stream":
        return mgu.Recipe(WORDS, batch_size=4, window=5), stream(), options
    return mgu.Recipe(LAST, batch_size=8), samples(), options | {"devices": 2 if kind == "devices" else 1}


@pytest.mark.parametrize(
    "kind",
    [
        "validation",
        "stream",
        pytest.param("samples", marks=pytest.mark.slow),
        pytest.param("devices", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_in_any_call_resumes_to_the_same_bits(kind, tmp_path):
    """Every call is killed once, and the same line resumes; ``on_call`` comes before its checkpoint."""
    recipe, data, options = resumable(kind)
    whole, values = mgu.fit(recipe, data, **options)
    for number, done in ((1, 0), (1, 0), (2, 4), (2, 8)):
        with mgu.Checkpoints(tmp_path) as checkpoints, pytest.raises(Killed):
            mgu.fit(recipe, data, checkpoints=checkpoints, on_call=kill_in_call(number), **options)
        with mgu.Checkpoints(tmp_path) as checkpoints:
            assert max(checkpoints.steps, default=0) == done
    with mgu.Checkpoints(tmp_path) as checkpoints:
        resumed, rest = mgu.fit(recipe, data, checkpoints=checkpoints, **options)
    assert same(resumed, whole)
    np.testing.assert_array_equal(rest, values[8:])
    with mgu.Checkpoints(tmp_path) as checkpoints:
        again, none = mgu.fit(recipe, data, checkpoints=checkpoints, **options)
    assert same(again, whole)
    assert not len(none)


@pytest.mark.parametrize("kind", ["samples", "validation", "stream"])
def test_a_run_continues_from_a_state_to_the_same_bits(kind):
    """Even with another key: the state holds the run's own."""
    recipe, data, options = resumable(kind)
    states = []
    whole, values = mgu.fit(recipe, data, **options, on_call=lambda state, *_: states.append(state))
    resumed, rest = mgu.fit(recipe, data, **(options | {"key": jax.random.key(99)}), state=states[0])
    assert same(whole, resumed)
    np.testing.assert_array_equal(rest, values[4:])


def test_a_checkpoint_comes_before_the_state_to_start_from(tmp_path):
    recipe, data = mgu.Recipe(LAST, batch_size=8), samples()
    first, _ = mgu.fit(recipe, data, steps=2, key=KEY)
    whole, _ = mgu.fit(recipe, data, steps=8, key=KEY, state=first, steps_per_call=4)
    for steps, taken in ((4, 2), (8, 4)):
        with mgu.Checkpoints(tmp_path) as checkpoints:
            reached, values = mgu.fit(
                recipe, data, steps=steps, key=KEY, state=first, steps_per_call=4, checkpoints=checkpoints
            )
        assert len(values) == taken
    assert same(reached, whole)


def test_a_run_resumes_once_the_damaged_checkpoint_is_removed(tmp_path):
    recipe, options = mgu.Recipe(LAST, batch_size=8), {"steps": 6, "key": KEY, "steps_per_call": 2}
    with mgu.Checkpoints(tmp_path) as checkpoints:
        whole, values = mgu.fit(recipe, samples(), checkpoints=checkpoints, **options)
        checkpoints.wait()
        assert checkpoints.steps == [4, 6]
        (tmp_path / "6.npz").write_bytes((tmp_path / "6.npz").read_bytes()[:-1])
        call = lambda: mgu.fit(recipe, samples(), checkpoints=checkpoints, **options)  # noqa: E731
        rejects(call, "step 6", "that of step 4 is whole: remove 6.npz to resume from it", "damaged", mgu.Damaged)
        (tmp_path / "6.npz").unlink()
        resumed, rest = call()
    assert same(resumed, whole)
    np.testing.assert_array_equal(rest, values[4:])


def test_the_next_batches_are_made_while_the_device_works():
    events, data = [], samples(8)

    def source(step):
        events.append(step)
        return data

    mgu.fit(
        mgu.Recipe(LAST, batch_size=8), source, steps=6, key=KEY, steps_per_call=2,
        on_call=lambda state, *_: events.append(f"call {int(state.step)}"),
    )  # fmt: skip
    assert events == [0, 1, 2, 3, "call 2", 4, 5, "call 4", "call 6"]


@pytest.mark.parametrize("answer", [True, np.True_])
def test_on_call_stops_a_run_whose_call_is_saved(answer, tmp_path):
    """The same line continues it."""
    recipe, options = mgu.Recipe(LAST, batch_size=8), {"steps": 8, "key": KEY, "steps_per_call": 2}
    whole, values = mgu.fit(recipe, samples(), **options)
    for done in (4, 8):
        with mgu.Checkpoints(tmp_path) as checkpoints:
            state, some = mgu.fit(
                recipe, samples(), checkpoints=checkpoints, on_call=lambda s, *_: s.step == 4 and answer, **options
            )  # fmt: skip
        assert (int(state.step), len(some)) == (done, 4)
    assert same(state, whole)
    np.testing.assert_array_equal(some, values[4:])


def test_on_call_that_returns_something_else():
    call = lambda: mgu.fit(mgu.Recipe(LAST, batch_size=8), samples(), steps=1, key=KEY, on_call=lambda *_: 0.5)  # noqa: E731
    rejects(call, "on_call", "return a text, True to stop the run, or None", 0.5)


def test_data_that_fail_after_on_call_has_stopped_the_run_do_not_matter():
    def source(step):
        if step >= 2:
            raise RuntimeError("no more data")
        return samples(8)

    options = {"steps": 9, "key": KEY, "steps_per_call": 2, "on_call": lambda *_: True}
    state, _ = mgu.fit(mgu.Recipe(LAST, batch_size=8), source, **options)
    assert int(state.step) == 2


def interrupt(at, where):
    """An ``on_call``, or a source of data, that interrupts the run as Ctrl-C does."""

    def on_call(state, *_):
        if where == "on_call" and int(state.step) == at:
            raise KeyboardInterrupt

    def source(step):
        if where == "source" and step == at + 2:  # which is made while the call from step ``at`` on works
            raise KeyboardInterrupt
        return jax.tree.map(lambda a: a[:8], samples())

    return source, on_call


@pytest.mark.parametrize("where", ["on_call", "source"])
def test_an_interrupt_loses_nothing(where):
    """The state and the losses of the complete calls are with the error or, if asked, returned."""
    (source, on_call), states = interrupt(4, where), []
    recipe, options = mgu.Recipe(LAST, batch_size=8), {"steps": 8, "key": KEY, "steps_per_call": 2}
    whole, values = mgu.fit(recipe, interrupt(0, "")[0], **options, on_call=lambda state, *_: states.append(state))
    options |= {"data": source, "on_call": on_call}
    with pytest.raises(KeyboardInterrupt) as caught:
        mgu.fit(recipe, **options)
    for state, losses_so_far in (
        (caught.value.state, caught.value.losses),
        mgu.fit(recipe, on_interrupt="return", **options),
    ):
        assert same(state, states[1])
        np.testing.assert_array_equal(losses_so_far, values[:4])
    resumed, rest = mgu.fit(recipe, **(options | {"data": interrupt(0, "")[0], "on_call": None}), state=state)
    assert same(resumed, whole)
    np.testing.assert_array_equal(rest, values[4:])


def test_an_interrupt_before_the_first_call_is_complete():
    source, _ = interrupt(-2, "source")
    state, none = mgu.fit(mgu.Recipe(LAST, batch_size=8), source, steps=8, key=KEY, on_interrupt="return")
    assert (int(state.step), none.shape) == (0, (0,))
