"""``mgu_jax.start`` returns the state that a run or a sweep starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import define_prng_impl

import mgu_jax as mgu
from mgu_jax import checks
from mgu_jax.training.hyper import as_settings
from tests.same import same
from tests.training.common import KEY, KEYS, LAST, Killed, kill_in_call, samples
from tests.training.test_sweep import GRID, RECIPE, VALIDATION

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


@pytest.mark.parametrize("validation", [None, VALIDATION], ids=["plain", "with a validation"])
def test_a_run_from_its_start_has_the_same_bits(validation):
    options = {"steps": 4, "key": KEY, "validation": validation}
    first = mgu.start(RECIPE, KEY, validation=validation)
    assert isinstance(first, mgu.TrainState)
    assert (first.best is None) == (validation is None)
    whole, _ = mgu.fit(RECIPE, samples(), **options)
    assert same(mgu.fit(RECIPE, samples(), state=first, **options)[0], whole)
    assert same(mgu.fit(RECIPE, samples(), state=mgu.start(RECIPE, KEY), **options)[0], whole)


def test_a_sweep_from_its_start_has_the_same_bits():
    options = {"hyper": GRID, "keys": KEYS, "steps": 2, "validation": VALIDATION}
    first = mgu.start(RECIPE, KEYS, GRID, validation=VALIDATION)
    assert isinstance(first, mgu.Sweep)
    assert first.stopped.tolist() == [-1] * 8
    whole, _ = mgu.sweep(RECIPE, samples(), **options)
    assert same(mgu.sweep(RECIPE, samples(), state=first, **options)[0], whole)


def test_a_member_starts_like_a_run():
    swept, settings = mgu.start(RECIPE, KEYS, GRID), as_settings(GRID)[0]
    for i in range(8):
        alone = mgu.start(RECIPE, KEYS[i % 2], jax.tree.map(lambda a, i=i: a[i // 2], settings))
        member = jax.tree.map(lambda a, i=i: a[i], swept.members)
        assert same(member._replace(opt_state=None), alone._replace(opt_state=None))


OTHER_KEYS = {
    "old": lambda: jax.random.PRNGKey(3),
    "old, of NumPy": lambda: np.asarray(jax.random.PRNGKey(3)),
    "rbg": lambda: jax.random.key(3, impl="rbg"),
    "unsafe_rbg": lambda: jax.random.key(3, impl="unsafe_rbg"),
}


def stop_after(calls):
    """An ``on_call`` that keeps the states of a run and kills it after its first call."""

    def on_call(state, *_):
        calls.append(state)
        raise Killed

    return on_call


@pytest.mark.parametrize("name", ["rbg", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHER_KEYS if n != "rbg")])
def test_a_run_with_a_key_of_another_kind_resumes(name, tmp_path):
    """From a state and from a checkpoint, to the same bits."""
    options, states = {"steps": 4, "key": OTHER_KEYS[name](), "steps_per_call": 2}, []
    whole, _ = mgu.fit(RECIPE, samples(), **options)
    with mgu.Checkpoints(tmp_path) as checkpoints, pytest.raises(Killed):
        mgu.fit(RECIPE, samples(), **options, checkpoints=checkpoints, on_call=kill_in_call(2))
    with pytest.raises(Killed):
        mgu.fit(RECIPE, samples(), **options, on_call=stop_after(states))
    with mgu.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [2]
        assert same(mgu.fit(RECIPE, samples(), **options, checkpoints=checkpoints)[0], whole)
    assert same(mgu.fit(RECIPE, samples(), **options, state=states[0])[0], whole)


def test_a_key_of_the_old_kind_draws_the_same_numbers():
    for old in ("old", "old, of NumPy"):
        assert same(mgu.start(RECIPE, OTHER_KEYS[old]()), mgu.start(RECIPE, jax.random.key(3)))


@pytest.mark.parametrize(
    ("train", "name"),
    [
        (mgu.sweep, "old"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in ((mgu.sweep, "rbg"), (mgu.halving, "old"), (mgu.halving, "rbg"))
        ),
    ],
)
def test_sweeps_with_keys_of_another_kind_resume(train, name, tmp_path):
    keys = jax.random.split(OTHER_KEYS[name](), 2)
    options = {"hyper": GRID, "keys": keys, "steps_per_call": 1}
    options |= {"steps": 2} if train is mgu.sweep else {"rungs": (1, 2), "validation": VALIDATION}
    whole, states = train(RECIPE, samples(), **options), []
    with mgu.Checkpoints(tmp_path) as checkpoints, pytest.raises(Killed):
        train(RECIPE, samples(), **options, checkpoints=checkpoints, on_call=kill_in_call(2))
    with pytest.raises(Killed):
        train(RECIPE, samples(), **options, on_call=stop_after(states))
    with mgu.Checkpoints(tmp_path) as checkpoints:
        assert same(train(RECIPE, samples(), **options, checkpoints=checkpoints)[0], whole[0])
    assert same(train(RECIPE, samples(), **options, state=states[0])[0], whole[0])
    assert isinstance(mgu.start(RECIPE, keys, GRID), mgu.Sweep)


def test_a_generator_of_the_users_own_is_restored(tmp_path):
    def raw(function):
        return lambda key, *rest: jax.random.key_data(function(jax.random.wrap_key_data(key), *rest))

    mine = define_prng_impl(
        key_shape=(2,),
        seed=lambda seed: jax.random.key_data(jax.random.key(seed)),
        split=raw(jax.random.split),
        fold_in=raw(jax.random.fold_in),
        random_bits=lambda key, width, shape: jax.random.bits(jax.random.wrap_key_data(key), shape, f"uint{width}"),
    )
    state = {"key": jax.random.key(3, impl=mine)}
    with mgu.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        assert same(checkpoints.restore(state), state)


def test_hyper_reaches_the_initial_parameters():
    hyper = mgu.Hyper(forget_bias=0.5, initial_scale=0.1)
    plain, other = (mgu.start(mgu.Recipe(LAST), KEY, h).params.layers[0] for h in (mgu.Hyper(), hyper))
    np.testing.assert_array_equal(other.b_f, np.full(5, 0.5, np.float32))
    np.testing.assert_allclose(other.U_f, 0.1 * plain.U_f, rtol=1e-6)


def test_leaf_specs_describe_every_leaf():
    specs = checks.leaf_specs("state", {"a": jnp.zeros((3, 4)), "key": KEY, "n": 1.5})
    assert specs == {"['a']": "float32[3, 4]", "['key']": "key<fry>[]", "['n']": "float64[]"}
    abstract = jax.eval_shape(lambda: mgu.start(RECIPE, KEY))
    assert checks.leaf_specs("state", abstract) == checks.leaf_specs("state", mgu.start(RECIPE, KEY))
