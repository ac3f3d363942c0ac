"""Successive halving is the sweep, of fewer and fewer settings."""

import jax
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.gradients import relative_error
from mgu_jax.training import losses
from mgu_jax.training.checkpoint import Checkpoints
from mgu_jax.training.halving import Halving, begin
from tests.training.test_sweep import GRID, KEYS, RECIPE, VALIDATION, run, same, samples

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")

OPTIONS = {
    "recipe": RECIPE, "data": samples(), "hyper": GRID, "keys": KEYS, "validation": VALIDATION, "steps_per_call": 5,
}  # fmt: skip


@pytest.mark.slow
def test_halving_leaves_the_better_half_each_time_and_they_are_as_in_the_whole_sweep():
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
def test_one_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    """From the middle of a rung, from its end, where settings are still to be dropped, and from the very end."""
    what = OPTIONS | {"keys": KEYS[:1], "rungs": (2, 5), "steps_per_call": 2}
    like = {name: what[name] for name in ("recipe", "hyper", "keys", "rungs", "validation")}
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        whole = mgu.halving(on_call=lambda state, *_: checkpoints.save(int(state.sweep.step), state), **what)
        checkpoints.wait()
        assert checkpoints.steps == [2, 4, 5]
        for step in checkpoints.steps:
            state = checkpoints.restore(begin(step=step, **like), step)
            assert len(state.left) == (4 if step == 2 else 2)
            resumed = mgu.halving(state=state, **what)
            assert same(resumed, whole)


def test_what_cannot_be_is_one_sentence():
    swept, _ = run(steps=1)
    rungs, steps = (2, 4), "rungs must be steps that rise, at least one; got"
    for options, text in (
        ({"validation": None}, "validation must be a Validation; got None."),
        ({"keys": 3}, "keys must be PRNG keys [S], as jax.random.split makes them; got 3."),
        ({"keys": KEYS[0]}, "keys must be PRNG keys [S], as jax.random.split makes them; got key<fry> []."),
        ({"hyper": None}, "hyper must be a Hyper; got None."),
        ({"rungs": (2, "a")}, f"{steps} (2, 'a')."),
        ({"rungs": (2.5, 4)}, f"{steps} (2.5, 4)."),
        ({"rungs": (5, 5)}, f"{steps} (5, 5)."),
        ({"rungs": ()}, f"{steps} ()."),
        ({"rungs": 4}, f"{steps} 4."),
        ({"keep": "half"}, "keep must be a share between 0 and 1; got 'half'."),
        ({"keep": 1.0}, "keep must be a share between 0 and 1; got 1.0."),
        ({"devices": "a"}, "devices must be a whole number of at least 1; got 'a'."),
        ({"recipe": 3}, "recipe must be a Recipe; got 3."),
        ({"state": swept}, "state must be a Halving, as on_call is given it; got a Sweep."),
        ({"state": Halving(swept, np.arange(3))}, "state must be one of 4 settings with rungs (2, 4); it is not."),
        (
            {"validation": mgu.Validation(samples(), (losses.accuracy,), patience=2)},
            "validation.patience must be None in a sweep; got 2.",
        ),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            mgu.halving(**(OPTIONS | {"rungs": rungs} | options))
        assert str(caught.value) == text
