"""One call of the compiled loop: it equals the plain loop, and an equal recipe compiles nothing."""

import copy
import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mgu_jax as mgu
from mgu_jax import losses
from mgu_jax.training.data import order
from mgu_jax.training.step import run_and_report, run_steps
from tests.same import same
from tests.training.common import KEY, LAST, samples

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


def test_a_call_of_the_compiled_loop_equals_the_plain_loop(data, recipe):
    hyper = mgu.Hyper(learning_rate=0.01, weight_decay=0.1, clip_norm=0.5)
    state = mgu.start(recipe, KEY, hyper)
    together, losses = run_steps(state, hyper, data, recipe=recipe, steps=7)

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

    for step, rows in enumerate(order(state.key, state.step, 7, 8, 40)):
        params, opt_state, value = update(params, opt_state, data.xs[rows], data.targets[rows])
        assert abs(value - losses[step]) < 1e-5
    assert int(together.step) == 7
    for a, b in zip(jax.tree.leaves(together.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_every_step_has_its_own_loss():
    """Targets [N, T, K] meet a model that reads out every step; each step's error reaches the gradient (fault 7)."""
    rng = np.random.default_rng(0)
    data = mgu.Data(
        rng.standard_normal((8, 5, 3)).astype(np.float32), rng.standard_normal((8, 5, 2)).astype(np.float32)
    )
    recipe = mgu.Recipe(mgu.Model(3, (4,), 2), losses.squared_error, "sgd", batch_size=8)
    state = mgu.start(recipe, KEY)
    _, values = run_steps(state, mgu.Hyper(), data, recipe=recipe, steps=1)
    ys = recipe.model.apply(state.params, data.xs.swapaxes(0, 1))
    assert abs(values[0] - np.mean((ys - data.targets.swapaxes(0, 1)) ** 2)) < 1e-6


def test_one_trace_per_configuration(data):
    traces = []
    model = mgu.Model(3, (8,), 2, readout="last")

    def loss(ys, targets):
        traces.append(1)
        return losses.cross_entropy(ys, targets)

    recipe = mgu.Recipe(model, loss, batch_size=8)
    for rate in (0.1, 0.2):
        mgu.fit(recipe, data, steps=40, key=KEY, hyper=mgu.Hyper(learning_rate=rate), steps_per_call=10)
    assert len(traces) == 1


@pytest.mark.slow
def test_rates_of_noise_are_traced_and_change_from_step_to_step():
    data, recipe = samples(), mgu.Recipe(LAST, batch_size=8)
    plain, noisy, again = (
        mgu.fit(recipe, data, steps=6, key=KEY, hyper=mgu.Hyper(**rates), steps_per_call=3)[1]
        for rates in ({}, {"dropout": 0.5, "zoneout": 0.1}, {"dropout": 0.5, "zoneout": 0.1})
    )
    np.testing.assert_array_equal(noisy, again)
    assert not np.any(noisy == plain)
    still = mgu.Recipe(LAST, optimizer=lambda hyper: optax.sgd(0.0), batch_size=24)
    _, values = mgu.fit(still, data, steps=4, key=KEY, hyper=mgu.Hyper(dropout=0.5))
    assert len(set(values.tolist())) == 4

    def values_of(rate):
        return run_steps(mgu.start(recipe, KEY), mgu.Hyper(dropout=rate), data, recipe=recipe, steps=2)[1]

    traced = jax.vmap(values_of)(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(traced[0], plain[:2], rtol=1e-6)


def test_an_equal_copy_of_a_model_in_a_second_recipe_compiles_nothing():
    compiled = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    def train():
        model = mgu.Model(3, (7,), 2, readout="last", cell=mgu.Cell())
        recipe = mgu.Recipe(model, batch_size=8)
        validation = mgu.Validation(samples(), (losses.accuracy,))
        mgu.fit(recipe, samples(), steps=4, key=KEY, steps_per_call=2, validation=validation)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train()
        assert compiled
        compiled.clear()
        train()
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


FAST = ("bfloat16", "all"), ("three axes, read out once", False), ("two heads at every step", True)


def some_slow(*pairs):
    """The pairs as parameters; those that are not in ``FAST`` are slow."""
    return [pytest.param(*pair, marks=[] if pair in FAST else pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(("dtype", "readout"), some_slow(*itertools.product(("float16", "bfloat16"), ("all", "mean"))))
def test_no_sum_over_data_is_in_less_than_float32(dtype, readout):
    """A step of plain gradient descent on 65,536 steps equals that of the same model in float32, up to rounding.

    Sums over the valid steps, over time, over the rows of the readout's bias, over all places of a token and over the
    samples of a learned first state would each be far off.
    """
    options = {"readout": readout, "embedding_size": 2, "learned_h0": True}
    half, wide = (mgu.Model(3, (4,), 2, dtype=d, **options) for d in (dtype, "float32"))
    rng = np.random.default_rng(0)
    N, T = (512, 128) if readout == "all" else (8, 1001)
    targets = rng.integers(0, 2, (N, T) if readout == "all" else N)
    data = mgu.Data(rng.integers(0, 3, (N, T)), targets * targets[..., ::-1], np.full(N, T))
    params, found = half.init(KEY), []
    for model in (half, wide):
        recipe = mgu.Recipe(model, optimizer="sgd", batch_size=N)
        start = jax.tree.map(lambda a, model=model: a.astype(model.dtype), params)
        gradient, values = first_gradient(recipe, start, data)
        scores = mgu.evaluate(model, start, data, (losses.cross_entropy, losses.accuracy), batch_size=N)
        found.append((gradient, values, scores))
    (gradient, values, scores), (right, exact, wanted) = found
    assert values.dtype == np.float32
    np.testing.assert_allclose([*values, *scores], [*exact, *wanted], rtol=0, atol=2e-3)
    for name in right._fields:
        for mine, other in zip(*(jax.tree.leaves(getattr(g, name)) for g in (gradient, right)), strict=True):
            assert np.abs(mine - other).max() < 0.03 * np.abs(other).max(), name


def first_gradient(recipe, params, data):
    """The gradient of a recipe's first step in float64, and its loss."""

    def kept(hyper):
        return optax.GradientTransformation(
            lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradient, *_: (gradient, gradient)
        )

    recipe = mgu.Recipe(recipe.model, optimizer=kept, batch_size=recipe.batch_size)
    state, values = mgu.fit(recipe, data, steps=1, key=KEY, state=mgu.start(recipe, KEY)._replace(params=params))
    return jax.tree.map(lambda a: np.asarray(a, np.float64), state.opt_state), values


class Wrapped:
    """A model of the user's own: it changes the outputs of another, and may declare what it reads out."""

    def __init__(self, model, change, **attributes):
        self.model, self.change, self.init, self.start = model, change, model.init, model.start
        self.__dict__.update(attributes)

    def apply(self, params, xs, *, return_state=False, **options):
        ys = self.model.apply(params, xs, return_state=return_state, **options)
        return (self.change(ys[0]), ys[1]) if return_state else self.change(ys)


def squared(ys, targets, mask=None):
    """The squared error of any tree of outputs."""
    errors = jax.tree.map(lambda a, b: ((a - b) ** 2).reshape(*b.shape[:2], -1).mean(-1), ys, targets)
    return sum(
        losses.mean(error, mask if error.shape == getattr(mask, "shape", None) else None)
        for error in jax.tree.leaves(errors)
    )


ONCE, EACH = mgu.Model(3, (5,), 12, readout="last"), mgu.Model(3, (5,), 12)
OWN = {
    "three axes, read out once": Wrapped(ONCE, lambda ys: ys.reshape(-1, 6, 2)),
    "four axes, read out once": Wrapped(ONCE, lambda ys: ys.reshape(-1, 6, 2, 1)),
    "two heads, read out once": Wrapped(ONCE, lambda ys: {"a": ys[:, :3], "b": (ys[:, 3:].reshape(-1, 3, 3),)}),
    "two axes at every step": Wrapped(EACH, lambda ys: ys[..., 0], readout="all"),
    "four axes at every step": Wrapped(EACH, lambda ys: ys.reshape(*ys.shape[:2], 6, 2), readout="all"),
    "two heads at every step": Wrapped(EACH, lambda ys: (ys[..., :3], ys[..., 3:, None]), readout="all"),
}


@pytest.mark.parametrize(("name", "lengths"), some_slow(*itertools.product(OWN, (False, True))))
def test_what_a_users_model_gives_is_declared(name, lengths):
    """Any number of axes and any tree of outputs; T = B = 6 = K, so that no axis could be told by its size."""
    model, rng = OWN[name], np.random.default_rng(0)
    xs, ends = rng.standard_normal((6, 6, 3)).astype(np.float32), rng.integers(1, 7, 6) if lengths else None
    params = model.init(KEY)
    ys = model.apply(params, xs.swapaxes(0, 1), lengths=ends)
    each = getattr(model, "readout", None) == "all"
    first = (lambda a: np.asarray(a).swapaxes(0, 1)) if each else np.asarray  # samples first
    targets = jax.tree.map(lambda a: rng.standard_normal(first(a).shape).astype(np.float32), ys)
    data = mgu.Data(xs, targets, ends)
    mask = np.arange(6)[:, None] < ends if lengths and each else None
    wanted = squared(ys, jax.tree.map(lambda a: a.swapaxes(0, 1), targets) if each else targets, mask)
    recipe = mgu.Recipe(model, squared, batch_size=6)
    key = mgu.start(recipe, KEY)._replace(params=params)
    for devices in (1, 2)[: 1 + lengths]:
        _, values = mgu.fit(recipe, data, steps=1, key=KEY, state=key, devices=devices)
        np.testing.assert_allclose(values[0], wanted, rtol=1e-5)
    np.testing.assert_allclose(mgu.evaluate(model, params, data, (squared,)), [wanted], rtol=1e-5)
    for mine, right in zip(*map(jax.tree.leaves, (mgu.predict(model, params, data, batch_size=4), ys)), strict=True):
        np.testing.assert_allclose(mine, first(right), rtol=1e-5)


COPIES = {"pickled": lambda value: pickle.loads(pickle.dumps(value)), "copied": copy.deepcopy}


@pytest.mark.parametrize("how", COPIES)
def test_a_recipe_that_was_pickled_or_copied_is_the_same_and_compiles_nothing(how):
    model = mgu.Model(
        3, (5,), 2, mgu.Cell(gate="hb"), readout="last", precision=jax.lax.Precision.HIGH, compute_dtype="bfloat16"
    )
    recipe = mgu.Recipe(model, schedule="cosine", total_steps=9, batch_size=8, evaluate_at=mgu.ema(0.9), pass_over=2)
    again, validation = COPIES[how](recipe), mgu.Validation(samples(), (losses.accuracy,))
    assert again is not recipe
    assert (again, hash(again)) == (recipe, hash(recipe))
    options = {"steps": 2, "key": KEY, "validation": validation}
    state, _ = mgu.fit(recipe, samples(), **options)
    known = run_and_report._cache_size()
    other, _ = mgu.fit(again, samples(), **options)
    assert run_and_report._cache_size() == known
    assert same(other, state)
