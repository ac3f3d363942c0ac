"""Optimisers that need more than a gradient, evaluation at other parameters, and batches that are passed over."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mgu_jax as mgu
from mgu_jax import losses
from mgu_jax.gradients import relative_error
from mgu_jax.training.step import run_steps
from tests.rejects import is_one_sentence, rejects
from tests.same import same
from tests.training.common import KEY, KEYS, LAST, WORDS, Killed, kill_in_call, samples, stream

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")


def apart(tree, wanted):
    """The largest relative difference of any array of two trees."""
    assert jax.tree.structure(tree) == jax.tree.structure(wanted)
    return max(map(relative_error, jax.tree.leaves(tree), jax.tree.leaves(wanted)))


def plateau(hyper):
    return optax.chain(optax.adam(hyper.learning_rate), optax.contrib.reduce_on_plateau(patience=2))


def lookahead(hyper):
    return optax.lookahead(optax.sgd(hyper.learning_rate), 3, 0.5)


def lbfgs(hyper):
    return optax.lbfgs(memory_size=3)


def schedule_free(hyper):
    return optax.contrib.schedule_free_sgd(hyper.learning_rate)


def slow(opt_state, params):
    return params.slow


RECIPES = {
    "value": mgu.Recipe(LAST, optimizer=plateau, batch_size=8),
    "value_fn": mgu.Recipe(LAST, optimizer=lbfgs, batch_size=8),
    "lookahead": mgu.Recipe(LAST, optimizer=lookahead, batch_size=8, evaluate_at=slow, pass_over=1),
    "schedule-free": mgu.Recipe(
        LAST, optimizer=schedule_free, batch_size=8, evaluate_at=optax.contrib.schedule_free_eval_params
    ),
    "average": mgu.Recipe(LAST, batch_size=8, evaluate_at=mgu.ema(0.8), pass_over=2),
}
HYPER = mgu.Hyper(learning_rate=0.1)


def by_hand(recipe, steps):
    """The parameters after each step, with optax alone: what its documentation says to write."""
    data, state = samples(8), mgu.start(recipe, KEY, HYPER)

    def loss(params):
        return losses.cross_entropy(LAST.apply(params, data.xs.swapaxes(0, 1)), data.targets)

    pair = recipe.optimizer is lookahead
    params = optax.LookaheadParams.init_synced(state.params) if pair else state.params
    optimizer = recipe.optimizer(HYPER)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(opt_state, params):
        value, gradient = jax.value_and_grad(loss)(params.fast if pair else params)
        more = {} if pair else {"value": value, "grad": gradient, "value_fn": loss}
        update = optax.with_extra_args_support(optimizer).update
        updates, opt_state = update(gradient, opt_state, params, **more)
        return opt_state, optax.apply_updates(params, updates)

    for _ in range(steps):
        opt_state, params = step(opt_state, params)
        yield opt_state, params


def slowly(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", ["value", "lookahead", *slowly("value_fn", "schedule-free")])
def test_an_optimiser_makes_the_steps_of_optax(name):
    recipe, state = RECIPES[name], mgu.start(RECIPES[name], KEY, HYPER)
    for opt_state, params in by_hand(recipe, 5):
        state, _ = run_steps(state, HYPER, samples(8), recipe=recipe, steps=1)
        wanted = params.fast if name == "lookahead" else params
        assert apart(state.params, wanted) < 1e-4
        evaluated = {"lookahead": lambda: params.slow}  # noqa: B023
        evaluated["schedule-free"] = lambda: optax.contrib.schedule_free_eval_params(opt_state, params)  # noqa: B023
        if name in evaluated:
            assert apart(recipe.eval_params(state), evaluated[name]()) < 1e-4
            assert apart(state.params, evaluated[name]()) > 1e-4 or int(state.step) in (1, 3)
    if name == "value":
        assert float(state.opt_state[1].count) == 0  # it has seen each loss: patience is counted in steps


def test_the_average_is_the_weighted_mean_of_all_steps():
    """With weights that add up to 1; before the first step, the parameters themselves."""
    recipe, visited = RECIPES["average"], []
    first = mgu.start(recipe, KEY)
    assert same(recipe.eval_params(first), first.params)
    state, _ = mgu.fit(
        recipe, samples(), steps=6, key=KEY, hyper=HYPER, steps_per_call=1,
        on_call=lambda state, *_: visited.append(state.params),
    )  # fmt: skip
    weights = 0.8 ** np.arange(5, -1, -1)
    weights /= weights.sum()
    wanted = jax.tree.map(lambda *each: sum(w * a for w, a in zip(weights, each, strict=True)), *visited)
    assert apart(recipe.eval_params(state), wanted) < 2e-6


def test_the_average_of_half_precision_is_kept_in_single():
    model = mgu.Model(3, (5,), 2, readout="last", dtype="bfloat16")
    state = mgu.start(mgu.Recipe(model, optimizer="sgd", batch_size=8, evaluate_at=mgu.ema(0.999)), KEY)
    assert {a.dtype.name for a in jax.tree.leaves(state.opt_state.average)} == {"float32"}
    evaluated = mgu.Recipe(model, optimizer="sgd", evaluate_at=mgu.ema(0.999)).eval_params(state)
    assert {a.dtype.name for a in jax.tree.leaves(evaluated)} == {"bfloat16"}


@pytest.mark.parametrize("name", ["schedule-free", *slowly("average")])
def test_validation_and_best_use_the_evaluated_parameters(name):
    """So do halving and the best member of a sweep; each member equals its run alone."""
    recipe, seen = RECIPES[name], []
    validation = mgu.Validation(samples(), (losses.cross_entropy,))
    options = {"steps": 6, "steps_per_call": 3, "validation": validation}

    def on_call(state, _, scores):
        seen.append((scores["cross_entropy"], recipe.eval_params(state)))

    state, _ = mgu.fit(recipe, samples(), key=KEYS[0], hyper=HYPER, on_call=on_call, **options)
    for score, params in seen:
        np.testing.assert_allclose(mgu.evaluate(LAST, params, samples(), validation.metrics)[0], score, rtol=1e-5)
    assert apart(state.best.params, min(seen, key=lambda row: row[0])[1]) < 1e-6
    members, _ = mgu.sweep(recipe, samples(), keys=KEYS, hyper=HYPER, **options)
    np.testing.assert_allclose(members.members.best.score[0], state.best.score, rtol=2e-5)
    evaluated = jax.vmap(recipe.eval_params)(members.members)
    assert apart(jax.tree.map(lambda a: a[0], evaluated), recipe.eval_params(state)) < 1e-4
    best = mgu.best_member(members, HYPER, validation)
    (score,) = mgu.evaluate(LAST, best.params, samples(), validation.metrics)
    np.testing.assert_allclose(score, best.score, rtol=1e-5)


@pytest.mark.parametrize("name", slowly(*RECIPES))
def test_a_killed_run_resumes_to_the_same_bits(name, tmp_path):
    recipe, validation = RECIPES[name], mgu.Validation(samples(), (losses.cross_entropy,))
    options = {"steps": 6, "key": KEY, "hyper": HYPER, "steps_per_call": 2, "validation": validation}
    whole, _ = mgu.fit(recipe, samples(), **options)
    with mgu.Checkpoints(tmp_path) as checkpoints, pytest.raises(Killed):
        mgu.fit(recipe, samples(), checkpoints=checkpoints, on_call=kill_in_call(2), **options)
    with mgu.Checkpoints(tmp_path) as checkpoints:
        resumed, values = mgu.fit(recipe, samples(), checkpoints=checkpoints, **options)
    assert len(values) == 4
    assert same(resumed, whole)


@pytest.mark.parametrize("name", slowly(*RECIPES))
def test_a_member_of_a_sweep_equals_its_run_alone(name):
    """Also on two devices."""
    recipe, hyper = RECIPES[name], mgu.grid(learning_rate=(0.1, 0.05))
    alone, _ = mgu.fit(recipe, samples(), steps=4, key=KEYS[1], hyper=HYPER)
    for devices in (1, 2):
        members, _ = mgu.sweep(recipe, samples(), keys=KEYS, hyper=hyper, steps=4, devices=devices)
        assert apart(jax.tree.map(lambda a: a[1], members.members.params), alone.params) < 1e-3
    split, _ = mgu.fit(recipe, samples(), steps=4, key=KEYS[1], hyper=HYPER, devices=2)
    assert apart(split.params, alone.params) < 1e-3


WRONG = [
    ({"evaluate_at": 3}, "evaluate_at", "a function (opt_state, params) -> params", 3),
    ({"pass_over": -1}, "pass_over", "at least 0", -1),
]
LATER = [
    ({"evaluate_at": lambda opt_state, params: params.W_y}, "evaluate_at", "make the model's parameters", ""),
    ({"evaluate_at": lambda params: params}, "evaluate_at", "from the optimiser's state and the parameters", ""),
    ({"optimizer": lambda hyper: widening()}, "optimizer", "make an update of the model's parameters", "float32[1]"),
]


def widening():
    """A transformation whose state grows."""
    grow = lambda u, s, p=None: (u, jnp.zeros(2))  # noqa: E731
    return optax.GradientTransformation(lambda params: jnp.zeros(1), grow)


def test_what_cannot_be_used_gets_one_sentence():
    for wrong, name, rule, got in WRONG:
        rejects(lambda wrong=wrong: mgu.Recipe(LAST, **wrong), name, rule, got)
    for wrong, name, rule, got in LATER:
        recipe = mgu.Recipe(LAST, batch_size=8, **wrong)
        rejects(lambda recipe=recipe: mgu.fit(recipe, samples(), steps=1, key=KEY), name, rule, got, TypeError)
    for decay in (1.0, -0.1, "a", None):
        rejects(lambda decay=decay: mgu.ema(decay), "decay", "[0, 1)", decay)


# Batches that are passed over


def spoilt(*steps):
    """A source whose batches of these steps hold nan."""
    good = samples(8)
    return lambda step: good._replace(xs=good.xs * np.float32(np.nan if step in steps else 1))


BY_OPTAX = mgu.Recipe(LAST, optimizer=lambda h: optax.apply_if_finite(optax.adam(h.learning_rate), 2), batch_size=8)
BY_RECIPE = mgu.Recipe(LAST, optimizer=lambda h: optax.adam(h.learning_rate), batch_size=8, pass_over=2)


@pytest.mark.parametrize("recipe", [pytest.param(BY_OPTAX, marks=pytest.mark.slow), BY_RECIPE], ids=["optax", "recipe"])
def test_a_batch_that_is_not_finite_is_passed_over(recipe, capsys):
    """It changes nothing, is counted and reported; the others make the same steps as without it."""
    options = {"key": KEY, "hyper": HYPER, "steps_per_call": 2, "progress": True}
    state, values = mgu.fit(recipe, spoilt(2, 3, 5), steps=7, **options)
    assert np.isnan(values).tolist() == [step in (2, 3, 5) for step in range(7)]
    assert mgu.passed_over(state) == 3
    shown = [line.split("loss ")[1] for line in capsys.readouterr().out.splitlines()]
    assert ["passed over" in text for text in shown] == [False, True, True, True]
    assert shown[1] == "nan, 2 batches passed over"
    assert shown[2].endswith(", 3 batches passed over")
    clean, kept = mgu.fit(recipe, spoilt(), steps=4, **options)
    np.testing.assert_array_equal(values[np.isfinite(values)], kept)
    assert same(state.params, clean.params)


@pytest.mark.parametrize("pass_over", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loss_that_overflows_is_passed_over_although_its_gradient_is_finite(pass_over):
    model = mgu.Model(LAST.input_size, (4,), 1, readout="last")
    recipe = mgu.Recipe(model, losses.squared_error, batch_size=8, pass_over=pass_over)

    def at(*steps):
        return lambda step: samples(8)._replace(targets=np.full((8, 1), 1e30 if step in steps else 1, np.float32))

    xs, far = samples(8).xs.swapaxes(0, 1), at(0)(0).targets
    huge = jax.grad(lambda params: losses.squared_error(model.apply(params, xs), far))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(huge(model.init(KEY))))
    state, values = mgu.fit(recipe, at(2, 4), steps=6, key=KEY, hyper=HYPER)
    assert np.isinf(values).tolist() == [step in (2, 4) for step in range(6)]
    assert mgu.passed_over(state) == 2
    clean, _ = mgu.fit(recipe, at(), steps=4, key=KEY, hyper=HYPER)
    assert same(state.params, clean.params)
    with pytest.raises(mgu.NotFinite):
        mgu.fit(recipe, at(*range(1, 2 + pass_over)), steps=6, key=KEY, hyper=HYPER)


@pytest.mark.parametrize("recipe", [BY_OPTAX, pytest.param(BY_RECIPE, marks=pytest.mark.slow)], ids=["optax", "recipe"])
def test_too_many_in_a_row_end_the_run(recipe):
    """At the first of them; the losses until then are not lost."""
    with pytest.raises(mgu.NotFinite) as caught:
        mgu.fit(recipe, spoilt(1, 4, 5, 6, 7), steps=20, key=KEY, steps_per_call=3)
    is_one_sentence(str(caught.value), "the loss", "stay finite", "nan at step 6")
    assert int(caught.value.state.step) == 6
    assert np.isnan(caught.value.losses).tolist() == [step in (1, 4, 5, 6) for step in range(7)]


def test_without_passing_over_the_first_batch_ends_the_run():
    with pytest.raises(mgu.NotFinite) as caught:
        mgu.fit(mgu.Recipe(LAST, batch_size=8), spoilt(4), steps=20, key=KEY, steps_per_call=3)
    assert caught.value.step == 4
    assert np.isnan(caught.value.losses).tolist() == [False] * 4 + [True]
    assert int(caught.value.state.step) == 3


def test_a_sweep_passes_over_a_batch_and_freezes_after_too_many():
    recipe, grid = BY_RECIPE, mgu.grid(learning_rate=(1e-3, 1e-2))
    options = {"hyper": grid, "keys": KEYS[:1], "steps_per_call": 4}
    state, values = mgu.sweep(recipe, spoilt(1), steps=4, **options)
    assert mgu.passed_over(state).tolist() == [1, 1]
    assert (np.asarray(state.stopped) == -1).all()
    assert np.isnan(values).tolist() == [[False, True, False, False]] * 2
    state, _ = mgu.sweep(recipe, spoilt(2, 5, 6, 7), steps=8, **options)
    assert np.asarray(state.stopped).tolist() == [5, 5]
    assert mgu.passed_over(state).tolist() == [1, 1]  # of the last good state
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(state.members.params))


def test_a_window_that_is_passed_over_does_not_spoil_the_state_of_the_stream():
    """Through an embedding whose row of one token is nan: the state before the window is carried on."""
    tokens = stream(41)
    seen = np.where(np.arange(41) == 7, 6, np.minimum(tokens.xs, 5))  # token 6 is in the second window of the first row
    data = mgu.Stream(seen.astype(np.int32), tokens.targets)
    recipe = mgu.Recipe(WORDS, optimizer="sgd", batch_size=2, window=5, pass_over=1)
    how, first = {"recipe": recipe, "steps": 1}, mgu.start(recipe, KEY)
    good, _ = run_steps(first, mgu.Hyper(), data, **how)
    spoil = good.params._replace(embedding=good.params.embedding.at[6].set(np.nan))
    state, values = run_steps(good._replace(params=spoil), mgu.Hyper(), data, **how)
    assert np.isnan(values).tolist() == [True]
    assert same(state.carry, good.carry)
    assert mgu.passed_over(state) == 1
