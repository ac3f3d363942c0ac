"""Successive halving is a sweep of fewer and fewer settings."""

import jax
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.gradients import relative_error
from tests.rejects import rejects
from tests.same import same
from tests.training.common import KEYS, Killed, kill_in_call, samples
from tests.training.test_sweep import GRID, RECIPE, VALIDATION

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


OPTIONS = {
    "recipe": RECIPE, "data": samples(), "hyper": GRID, "keys": KEYS, "validation": VALIDATION, "steps_per_call": 5,
}  # fmt: skip


@pytest.mark.slow
def test_halving_keeps_the_better_half_whose_runs_equal_those_of_the_whole_sweep():
    whole, _ = mgu.sweep(steps=12, **OPTIONS)
    early, _ = mgu.sweep(steps=5, **OPTIONS)
    means = np.asarray(early.members.best.score).reshape(4, 2).mean(1)
    state, hyper, left = mgu.halving(rungs=(5, 12), **OPTIONS)
    assert sorted(left.tolist()) == sorted(np.argsort(means)[:2].tolist())
    np.testing.assert_allclose(hyper.learning_rate, np.asarray(GRID.learning_rate)[left])
    for place, n in enumerate(left):
        for s in range(2):
            got, wanted = (
                jax.tree.map(lambda a, i=i: a[i], tree.members.params)
                for tree, i in ((state, place * 2 + s), (whole, n * 2 + s))
            )
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
                assert relative_error(a, b) < 1e-4


@pytest.mark.slow
def test_a_halving_continues_from_any_state_to_the_same_bits():
    """The states are from the middle of a rung, from its end before settings are dropped, and from the last step."""
    what, states = OPTIONS | {"keys": KEYS[:1], "rungs": (2, 5), "steps_per_call": 2}, []
    whole = mgu.halving(on_call=lambda state, *_: states.append(state), **what)
    assert [int(state.sweep.step) for state in states] == [2, 4, 5]
    assert [len(state.left) for state in states] == [4, 2, 2]
    for state in states:
        assert same(mgu.halving(state=state, **what), whole)


@pytest.mark.parametrize("call", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_halving_resumes_to_the_same_bits(call, tmp_path):
    """Killed once in the middle of the first rung and once in the second, after settings were dropped."""
    options = OPTIONS | {"keys": KEYS[:1], "rungs": (4, 6), "steps_per_call": 2}
    whole = mgu.halving(**options)
    with mgu.Checkpoints(tmp_path) as checkpoints, pytest.raises(Killed):
        mgu.halving(checkpoints=checkpoints, on_call=kill_in_call(call), **options)
    states = []
    with mgu.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [2, 4][: call - 1]
        on_call = lambda state, *_: states.append(len(state.left))  # noqa: E731
        resumed = mgu.halving(checkpoints=checkpoints, on_call=on_call, **options)
    assert states == {2: [4, 2], 3: [2]}[call]
    assert same(resumed, whole)
    with mgu.Checkpoints(tmp_path) as checkpoints:
        again = mgu.halving(checkpoints=checkpoints, **options)
    assert same(again, whole)


def test_a_halving_that_ends_before_its_checkpoint_is_refused(tmp_path):
    """A checkpoint that was saved by hand does not say which rungs it had, so its step and its settings must tell."""
    options, states = OPTIONS | {"keys": KEYS[:1], "steps_per_call": 2, "fraction": 0.25}, []
    mgu.halving(rungs=(2, 4), on_call=lambda state, *_: states.append(state), **options)
    with mgu.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, states[-1])
        for name, place in (("the checkpoint", {"checkpoints": checkpoints}), ("state", {"state": states[-1]})):
            call = lambda: mgu.halving(rungs=(2,), **place, **options)  # noqa: B023, E731
            said = rejects(call, "one of 4 settings with rungs (2,)", "got 1 setting at step 4", kind=ValueError)
            assert said.startswith(f"{name} must be")


def test_on_call_stops_all_rungs():
    options = OPTIONS | {"keys": KEYS[:1], "rungs": (4, 6), "steps_per_call": 2}
    state, hyper, left = mgu.halving(on_call=lambda state, *_: state.sweep.step == 2, **options)
    assert (int(state.step), left.tolist(), len(hyper.learning_rate)) == (2, [0, 1, 2, 3], 4)
