"""``mgu_jax.start`` returns the state that a run or a sweep starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax import checks
from mgu_jax.training.hyper import as_settings
from tests.same import same
from tests.training.common import KEY, KEYS, LAST, samples
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


def test_a_key_of_the_old_kind_starts_a_run():
    old = jax.random.PRNGKey(3)
    assert isinstance(mgu.start(RECIPE, old), mgu.TrainState)
    _, losses = mgu.fit(RECIPE, samples(), steps=2, key=old)
    assert np.isfinite(losses).all()


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
