"""Members of a sweep with data of their own: each is the run of ``fit`` on its part, and no other member matters."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import losses
from mgu_jax.training.devices import map_members
from mgu_jax.training.parts import as_parts
from tests.rejects import rejects
from tests.same import same
from tests.training.common import KEYS, Killed, kill_in_call

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")

P, N, T = 4, 10, 5
GRID = mgu.Hyper(learning_rate=np.float32([2**-7, 2**-5]))


def data(readout="last", seed=0):
    """Ten samples for each of four parts, [4, 10, 5, 3], with lengths and a rule that differs between the parts."""
    rng = np.random.default_rng(seed)
    xs = rng.standard_normal((P, N, T, 3))
    towards = rng.standard_normal((P, 3))
    sums = np.einsum("pntd,pd->pnt", xs, towards)
    targets = (sums if readout == "all" else sums.sum(-1)) > 0
    dtype = np.float64 if jax.config.jax_enable_x64 else np.float32
    return mgu.Data(xs.astype(dtype), targets.astype(np.int32), rng.integers(1, T + 1, (P, N)))


def recipe(readout="last"):
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    return mgu.Recipe(mgu.Model(3, (4,), 2, readout=readout, dtype=dtype), batch_size=4)


def run(train, readout="last", **options):
    """A sweep of two rates with two seeds on all parts."""
    how = {"hyper": GRID, "keys": KEYS, "steps": 6, "steps_per_call": 2} | options
    return mgu.sweep(recipe(readout), train, **how)


def at(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


def near(got, wanted, tolerance=1e-12):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def fit_alone(i, train, valid, readout="last", **options):
    """The run of member i on its own part alone."""
    n, s, p = np.unravel_index(i, (2, 2, len(train)))
    (metric,), hyper = (losses.cross_entropy,), mgu.Hyper(learning_rate=GRID.learning_rate[n])
    validation = mgu.Validation(valid[p], (metric,), **options)
    how = {"steps": 6, "steps_per_call": 2, "key": KEYS[s], "hyper": hyper, "validation": validation}
    return mgu.fit(recipe(readout), train[p], **how)


@pytest.mark.parametrize("readout", ["last", pytest.param("all", marks=pytest.mark.slow)])
def test_every_member_is_the_run_alone_on_its_part(readout, x64):
    """In float64 to 1e-12: losses, parameters, scores, and what ``evaluate`` measures; folds of unequal sizes too."""
    train, valid, test = mgu.folds(mgu.Parts(data(readout)), 3, key=jax.random.key(3), validation=True)
    state, values = run(train, readout, validation=mgu.Validation(valid, (losses.cross_entropy,)))
    assert values.shape == (2 * 2 * 12, 6)
    (score,) = mgu.evaluate(recipe(readout).model, state.members.params, test, (losses.accuracy,))
    for i in (0, 7, 22, 37):
        train_p, valid_p, test_p = (as_parts(parts) for parts in (train, valid, test))
        alone, alone_values = fit_alone(i, train_p, valid_p, readout)
        near(values[i], alone_values)
        near(at(state.members, i), alone)
        p = i % 12
        (right,) = mgu.evaluate(recipe(readout).model, alone.params, test[p], (losses.accuracy,))
        np.testing.assert_allclose(score[i], right, rtol=1e-12)
        (filled,) = mgu.evaluate(recipe(readout).model, alone.params, test_p[p], (losses.accuracy,))
        assert filled == right  # what fills a smaller part counts nothing


def test_permuting_the_parts_permutes_the_members():
    """To the same bits; and parts by position, by axis and as a list are the same parts."""
    whole, order = data(), np.array([2, 0, 3, 1])
    state, values = run(mgu.Parts(whole))
    permuted, others = run(mgu.Parts(at(whole, order)))
    members = (np.arange(16).reshape(4, P)[:, order]).reshape(-1)
    assert same(at(state.members, members), permuted.members)
    np.testing.assert_array_equal(values[members], others)
    pool = jax.tree.map(lambda a: a.reshape(P * N, *a.shape[2:]), whole)
    by_position = mgu.Parts(pool, np.arange(P * N).reshape(P, N))
    for parts in (by_position, mgu.Parts([*mgu.Parts(whole)]), mgu.Parts(pool, [*by_position.samples])):
        assert same(run(parts), (state, values))
        assert len(parts) == P
        assert same(parts[1], mgu.Parts(whole)[1])
    with pytest.raises(IndexError):
        by_position[P]


@pytest.mark.slow
def test_one_part_is_data_that_all_share():
    shared = at(data(), 0)
    state, values = run(shared)
    parts, others = run(mgu.Parts([shared]))
    np.testing.assert_allclose(others, values, rtol=1e-5)
    near(parts.members.params, state.members.params, 1e-4)


@pytest.mark.parametrize("size", [10, 11])
@pytest.mark.parametrize("validation", [False, True])
def test_folds_hold_out_every_sample_once(size, validation):
    xs = np.arange(size, dtype=np.float32).reshape(size, 1, 1)
    parts = mgu.folds(mgu.Data(xs, np.zeros(size, np.int32)), 3, validation=validation, key=jax.random.key(0))
    assert [len(each) for each in parts] == [3] * (2 + validation)
    held_out = [int(x) for fold in parts[-1] for x in fold.xs[:, 0, 0]]
    assert sorted(held_out) == [*range(size)]
    assert held_out != sorted(held_out)  # shuffled
    for f in range(3):
        together = np.concatenate([each[f].xs[:, 0, 0] for each in parts])
        assert sorted(together) == [*range(size)]


def test_folds_of_parts_cut_each_part_by_itself():
    parts = mgu.Parts(data())
    train, held_out = mgu.folds(parts, 5)
    assert (train.samples.shape, held_out.samples.shape) == ((20, 8), (20, 2))
    for p in range(P):
        for f in range(5):
            assert same(held_out[5 * p + f], at(parts[p], np.arange(f, N, 5)))


# Patience


OPTIONS = {"steps": 40, "hyper": GRID._replace(learning_rate=np.float32([2**-6, 1e38]))}


def patient(**changes):
    train, held_out = mgu.folds(mgu.Parts(data()), 5)
    validation = mgu.Validation(held_out, (losses.cross_entropy, losses.accuracy), patience=2)
    return run(train, **OPTIONS | {"validation": validation} | changes)


def test_members_that_are_skipped_are_not_computed():
    """There are as few rounds as the others need, and these have the same bits with and without the skipped ones."""
    computed = []

    def one(shared, x):
        jax.debug.callback(computed.append, x)
        return jnp.tanh(shared @ x), x.sum()

    xs, shared = jax.random.normal(KEYS[0], (11, 5)), jax.random.normal(KEYS[1], (3, 5))
    run = jax.jit(lambda xs, skipped: map_members(one, xs, shared, 4, None, skipped))
    whole = run(xs, np.zeros(11, bool))
    jax.effects_barrier()
    assert len(computed) == 12
    for left, rounds in (([0, 3, 4, 10], 1), ([1, 2, 5, 7, 9], 2), ([], 0)):
        computed.clear()
        some = run(xs, ~np.isin(np.arange(11), left))
        jax.effects_barrier()
        assert len(computed) == 4 * rounds
        assert same(at(some, np.array(left, int)), at(whole, np.array(left, int)))


def test_rounds_of_a_few_members_are_the_sweep_of_all():
    """They stop at the same steps, and the losses and scores are equal up to rounding."""
    seen = []
    for at_once in (None, 7):
        scores = []
        reached = patient(at_once=at_once, on_call=lambda *given, scores=scores: scores.append(given[2]))
        seen.append((*reached, scores))
    (state, values, scores), (rounds, others, more) = seen
    np.testing.assert_array_equal(state.members.step[:40], rounds.members.step[:40])
    np.testing.assert_allclose(others[:40], values[:40], rtol=1e-4)
    for one, other in zip(scores, more, strict=True):
        for name in one:
            np.testing.assert_allclose(other[name][:40], one[name][:40], rtol=1e-4)
    assert len(set(np.asarray(state.members.step)[:40])) > 3


def test_patience_of_a_member_is_that_of_its_run():
    state, values = patient()
    train, held_out = mgu.folds(mgu.Parts(data()), 5)
    stops = np.asarray(state.members.step)
    for i in (0, 13, 39):
        hyper = mgu.Hyper(learning_rate=OPTIONS["hyper"].learning_rate[0])
        validation = mgu.Validation(held_out[i % 20], (losses.cross_entropy,), patience=2)
        how = {"steps": 40, "steps_per_call": 2, "key": KEYS[i // 20], "hyper": hyper, "validation": validation}
        alone, _ = mgu.fit(recipe(), train[i % 20], **how)
        mine = at(state.members, i)
        assert (int(alone.step), int(alone.best.step), int(alone.best.waited)) == (
            stops[i], int(mine.best.step), int(mine.best.waited),
        )  # fmt: skip
        near(mine.params, alone.params, 1e-4)
        assert np.isfinite(values[i, : stops[i]]).all()
        assert np.isnan(values[i, stops[i] :]).all()


def test_a_killed_sweep_of_parts_resumes_to_the_same_bits(tmp_path):
    """It is killed when some members have stopped, and they remain so."""
    whole, values = patient(at_once=7)
    with mgu.Checkpoints(tmp_path) as checkpoints, pytest.raises(Killed):
        patient(at_once=7, checkpoints=checkpoints, on_call=kill_in_call(7))
    with mgu.Checkpoints(tmp_path) as checkpoints:
        resumed, rest = patient(at_once=7, checkpoints=checkpoints)
    assert same(resumed, whole)
    np.testing.assert_array_equal(rest, values[:, 12:])


def test_more_patience_does_not_wake_members_that_stopped(capsys):
    first, _ = patient(steps=20, progress=True)
    assert "members stopped early" in capsys.readouterr().out
    train, held_out = mgu.folds(mgu.Parts(data()), 5)
    stopped = np.asarray(first.members.step) < 20
    assert stopped[:40].any()
    validation = mgu.Validation(held_out, (losses.cross_entropy,), patience=100)
    state, _ = run(train, **OPTIONS | {"steps": 24, "state": first, "validation": validation})
    assert same(at(state.members, stopped), at(first.members, stopped))
    assert (np.asarray(state.members.step)[~stopped] == 24).all()


@pytest.mark.slow
def test_two_devices_leave_out_members_too():
    state, values = patient(at_once=5)
    split, others = patient(at_once=5, devices=2)
    np.testing.assert_array_equal(split.members.step, state.members.step)
    np.testing.assert_allclose(others, values, rtol=1e-4)


@pytest.mark.slow
def test_halving_compares_settings_over_seeds_and_parts():
    train, held_out = mgu.folds(mgu.Parts(data()), 5)
    validation = mgu.Validation(held_out, (losses.cross_entropy,), patience=3)
    hyper = mgu.Hyper(learning_rate=np.float32([1e-9, 2**-4, 2**-9]))
    how = {"hyper": hyper, "keys": KEYS[:1], "validation": validation, "steps_per_call": 3, "fraction": 0.4}
    states = []
    on_call = lambda state, *_: states.append(state)  # noqa: E731
    state, settings, left = mgu.halving(recipe(), train, rungs=(6, 12), on_call=on_call, **how)
    scores = np.asarray(states[1].sweep.members.best.score).reshape(3, 20).mean(1)
    assert left.tolist() == sorted(np.argsort(scores)[:2].tolist())
    assert len(state.stopped) == 40
    assert same(mgu.halving(recipe(), train, rungs=(6, 12), state=states[2], **how), (state, settings, left))


@pytest.mark.slow
def test_best_member_says_which_part_it_has():
    train, held_out = mgu.folds(mgu.Parts(data()), 5)
    validation = mgu.Validation(held_out, (losses.cross_entropy,))
    state, _ = run(train, validation=validation)
    best = mgu.best_member(state, GRID, validation)
    i = np.ravel_multi_index((best.setting, best.seed, best.part), (2, 2, 20))
    assert float(state.members.best.score[i]) == best.score == float(state.members.best.score.min())


def test_a_state_can_be_made_before():
    state, values = run(mgu.Parts(data()))
    first = mgu.start(recipe(), KEYS, GRID, parts=P)
    assert same(run(mgu.Parts(data()), state=first), (state, values))


# Errors


def stacked(**changes):
    return mgu.Parts(data()._replace(**changes))


POOL = at(data(), 0)
WRONG = [
    (mgu.Parts(3), "data", "a Data(xs, targets), or Parts of one or of a list", 3),
    (mgu.Parts([]), "data", "Parts of one or of a list", "a list"),
    (mgu.Parts([3]), "data", "a Data(xs, targets)", 3),
    (mgu.Parts([POOL, POOL._replace(lengths=None)]), "data", "parts that differ in nothing but their sizes", 1),
    (mgu.Parts([POOL], [[0]]), "data.samples", "None where data.data is not one Data", "a list"),
    (stacked(targets=np.zeros((P, N - 1), np.int32)), "data.targets", f"axes [{P}, {N}], as data.xs", [P, N - 1]),
    (stacked(xs=np.zeros((P, N))), "data.xs", "[P, n, T, D]", [P, N]),
    (stacked(lengths=np.full((P, N), T + 1)), "data.lengths", f"[0, {T}]", T + 1),
    (mgu.Parts(POOL, [[0, 10], [1, 2]]), "data.samples", "[0, 10), as the samples of data.data", 10),
    (mgu.Parts(POOL, [[0, 1.5]]), "data.samples", "rows of whole numbers", "float64 [2]"),
    (mgu.Parts(POOL, np.zeros(3, int)), "data.samples", "[P, n] or a list of P rows", "int64 [3]"),
    (mgu.Parts(POOL, 3), "data.samples", "[P, n] or a list of P rows", 3),
    (mgu.Parts(POOL, [[]]), "data.samples", "", ""),
    (mgu.Parts(POOL, np.zeros((2, 3), int)), "data", "at least 4 samples in each part, one batch", 3),
]


@pytest.mark.parametrize(("parts", "name", "rule", "got"), WRONG, ids=[f"{w[1]} {w[2]}"[:60] for w in WRONG])
def test_wrong_parts(parts, name, rule, got):
    rejects(lambda: run(parts), name, rule, got)


def test_parts_elsewhere():
    parts, model = mgu.Parts(data()), recipe().model
    metric, params = (losses.accuracy,), recipe().model.init(KEYS[0])
    rejects(lambda: mgu.fit(recipe(), parts, steps=1, key=KEYS[0]), "data", "such as data[0]", "4 parts")
    validation = mgu.Validation(parts, metric)
    what = "validation.data must be that of one run"
    rejects(lambda: mgu.fit(recipe(), POOL, steps=1, key=KEYS[0], validation=validation), what, "", "4 parts")
    rejects(lambda: run(POOL, validation=validation), "validation.data", "1 part, as data", 4)
    rejects(lambda: run(mgu.Parts([POOL] * 2), validation=validation), "validation.data", "2 parts, as data", 4)
    rejects(lambda: mgu.evaluate(model, params, parts, metric), "params", "those of members, every array [M, ...]")
    members = jax.tree.map(lambda a: jnp.stack([a] * 6), params)
    rejects(lambda: mgu.evaluate(model, members, parts, metric), "data", "divides the 6 members", 4)
    rejects(lambda: mgu.predict(model, params, parts), "data", "such as data[0]", "4 parts")
    streams = replace(recipe("all"), window=2)
    rejects(lambda: mgu.sweep(streams, parts, hyper=GRID, keys=KEYS, steps=1), "data", "a Stream", "a Parts")
    blind = replace(recipe(), loss=lambda ys, targets: (ys**2).mean())
    unequal = mgu.Parts(POOL, [[0, 1, 2, 3, 4], [5, 6, 7, 8]])
    rejects(lambda: mgu.sweep(blind, unequal, hyper=GRID, keys=KEYS, steps=1), "weights", "", "(ys, targets)")


FOLDS = [
    ((POOL, 1), {}, "k", "at least 2", 1),
    ((POOL, 2), {"validation": True}, "k", "at least 3", 2),
    ((POOL, 11), {}, "data", "at least 11 samples in each part, one per fold", 10),
    ((3, 2), {}, "data", "a Data(xs, targets)", 3),
    ((POOL, 2), {"key": 3}, "key", "one PRNG key", 3),
    ((POOL, 2), {"validation": 3}, "validation", "False, True", 3),
]


@pytest.mark.parametrize(("arguments", "options", "name", "rule", "got"), FOLDS, ids=[f[3] for f in FOLDS])
def test_folds_errors(arguments, options, name, rule, got):
    rejects(lambda: mgu.folds(*arguments, **options), name, rule, got)
