"""Batches of similar length: every sample once an epoch, little padding, and the same numbers as with all of it."""

import itertools

import jax
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import losses
from mgu_jax.training.by_length import _least_padding
from mgu_jax.training.step import run_and_report
from tests.rejects import rejects
from tests.same import same
from tests.training.common import KEY, KEYS, LAST, TAGS, Killed, kill_in_call

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")

RNG = np.random.default_rng(0)
LENGTHS = np.array([1, 1, 2, 2, 3, 3, 3, 4, 5, 9, 9, 12, 12])
N, T = len(LENGTHS), 14
XS = np.where(np.arange(T)[:, None] < LENGTHS[:, None, None], RNG.standard_normal((N, T, 3)), np.nan).astype(np.float32)
ONCE = mgu.Data(XS, np.arange(N) % 2, LENGTHS)
EACH = mgu.Data(XS, RNG.integers(0, 2, (N, T)), LENGTHS)
RECIPE = mgu.Recipe(LAST, batch_size=4)


def source(recipe=RECIPE, data=ONCE, **options):
    return mgu.by_length(recipe, data, **({"key": KEY, "boundaries": (5, 12)} | options))


@pytest.mark.parametrize(("recipe", "data"), [(RECIPE, ONCE), (mgu.Recipe(TAGS, batch_size=4), EACH)])
def test_an_epoch_has_every_sample_once_in_batches_of_similar_length(recipe, data):
    """Only those that do not fill a batch are left out, others in each epoch; a batch follows from its step alone."""
    batches = source(recipe, data)
    assert (batches.boundaries, batches.per_epoch) == ((5, 12), 3)
    assert source(boundaries=None, buckets=3).boundaries == (3, 5, 12)
    seen, left_out, orders = [batches(step) for step in range(60)], set(), set()
    for first in range(0, 60, 3):
        epoch = seen[first : first + 3]
        rows = [np.flatnonzero((XS[:, 0] == x[0]).all(1)).item() for batch in epoch for x in batch.xs]
        assert len(set(rows)) == 12
        left_out |= {*range(N)} - {*rows}
        orders.add(tuple(rows))
        for batch, which in zip(epoch, np.reshape(rows, (3, 4)), strict=True):
            steps = batch.xs.shape[1]
            assert steps == (5 if LENGTHS[which].max() <= 5 else 12)
            np.testing.assert_array_equal(batch.xs, XS[which, :steps])
            np.testing.assert_array_equal(batch.lengths, LENGTHS[which])
            wanted = data.targets[which] if data is ONCE else data.targets[which, :steps]
            np.testing.assert_array_equal(batch.targets, wanted)
        assert sorted(batch.xs.shape[1] for batch in epoch) == [5, 5, 12]
    assert len(left_out) > 6
    assert len(orders) == 20
    for step in (59, 0, 31):
        assert same(source(recipe, data)(step), seen[step])
    assert not same(source(recipe, data, key=KEYS[0])(0), seen[0])


def test_training_is_that_on_whole_samples_and_compiles_once_a_length():
    """The losses are those of the same samples with all their padding."""
    batches, known = source(), run_and_report._cache_size()

    def padded(step):
        batch = batches(step)
        more = T - batch.xs.shape[1]
        return batch._replace(xs=np.pad(batch.xs, ((0, 0), (0, more), (0, 0))))

    options = {"steps": 7, "key": KEY, "hyper": mgu.Hyper(0.05)}
    _, values = mgu.fit(RECIPE, batches, steps_per_call=5, **options)
    assert run_and_report._cache_size() == known + 2
    _, wanted = mgu.fit(RECIPE, padded, steps_per_call=7, **options)
    np.testing.assert_allclose(values, wanted, rtol=2e-5)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    options = {"steps": 8, "key": KEY}
    whole, values = mgu.fit(RECIPE, source(), steps_per_call=8, **options)
    with mgu.Checkpoints(tmp_path) as checkpoints, pytest.raises(Killed):
        mgu.fit(
            RECIPE, source(), steps_per_call=4, checkpoints=checkpoints, on_call=kill_in_call(2), **options
        )  # fmt: skip
    with mgu.Checkpoints(tmp_path) as checkpoints:
        resumed, rest = mgu.fit(RECIPE, source(), steps_per_call=3, checkpoints=checkpoints, **options)
    assert same(resumed, whole)
    np.testing.assert_array_equal(rest, values[4:])


@pytest.mark.slow
def test_a_sweep_reads_the_same_batches():
    """Also on two devices; and a run whose batches are split over them."""
    options, grid = {"steps": 5, "steps_per_call": 3}, mgu.grid(learning_rate=(1e-3, 0.05))
    _, values = mgu.fit(RECIPE, source(), key=KEYS[0], hyper=mgu.Hyper(0.05), **options)
    for devices in (1, 2):
        _, swept = mgu.sweep(RECIPE, source(), hyper=grid, keys=KEYS[:1], devices=devices, **options)
        np.testing.assert_allclose(swept[1], values, rtol=2e-5)
        _, split = mgu.fit(RECIPE, source(), key=KEYS[0], hyper=mgu.Hyper(0.05), devices=devices, **options)
        np.testing.assert_allclose(split, values, rtol=2e-5)


def test_a_function_may_return_batches_of_different_lengths():
    """Also without ``lengths``, where the whole of each is read; a loss that is not finite is found at its step."""
    xs = np.random.default_rng(1).standard_normal((4, 6, 3)).astype(np.float32)

    def of(step):
        return mgu.Data(xs[:, : 3 + step % 2] * (np.nan if step == 5 else 1), np.arange(4) % 2)

    states = []
    with pytest.raises(mgu.NotFinite, match="at step 5; the last good state is that of step 4") as caught:
        mgu.fit(RECIPE, of, steps=8, key=KEY, steps_per_call=4, on_call=lambda state, *_: states.append(state))
    assert len(caught.value.losses) == 6
    ys = LAST.apply(states[0].params, xs[:, :3].swapaxes(0, 1))
    np.testing.assert_allclose(caught.value.losses[4], losses.cross_entropy(ys, np.arange(4) % 2), rtol=1e-5)


def test_the_boundaries_leave_the_least_padding():
    """Compared with every choice."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        lengths, most = rng.integers(0, 12, rng.integers(1, 15)), int(rng.integers(1, 5))
        known = sorted(set(np.maximum(lengths, 1)))

        def steps(ends):
            return np.array(ends)[np.searchsorted(ends, np.maximum(lengths, 1))].sum()  # noqa: B023

        several = (itertools.combinations(known[:-1], count) for count in range(min(most, len(known))))
        best = min(steps((*chosen, known[-1])) for choices in several for chosen in choices)
        got = _least_padding(lengths, most)
        assert len(got) <= most
        assert steps(got) == best


WRONG = [
    ({"recipe": 3}, "recipe", "a Recipe", 3),
    ({"recipe": mgu.Recipe(TAGS, batch_size=4, window=2)}, "recipe.window", "None", 2),
    ({"data": ONCE._replace(lengths=None)}, "data.lengths", "one per sample", "None"),
    ({"data": jax.tree.map(lambda a: a[:3], ONCE)}, "data", "at least 4 samples", 3),
    ({"key": 3}, "key", "one PRNG key", 3),
    ({"buckets": 0}, "buckets", "at least 1", 0),
    ({"boundaries": (5, 3)}, "boundaries", "rising", (5, 3)),
    ({"boundaries": (3, 5)}, "boundaries", "the longest length, 12", 5),
]


def test_a_wrong_argument_gets_one_sentence():
    for wrong, name, rule, got in WRONG:
        rejects(lambda wrong=wrong: source(**wrong), name, rule, got)
