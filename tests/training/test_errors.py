"""Every wrong argument of training gets one sentence: the argument, the rule, what came."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mgu_jax as mgu
from mgu_jax import losses
from mgu_jax.training.hyper import as_settings
from mgu_jax.training.sweep import member_rows
from tests.rejects import rejects

pytestmark = pytest.mark.usefixtures("optax_promotes", "quick_compiler")

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 2)
LAST = mgu.Model(3, (4,), 2, readout="last")
WORDS = mgu.Model(7, (6,), 7, embedding_size=4)
RECIPE = mgu.Recipe(LAST, batch_size=2)
GRID = mgu.grid(learning_rate=(1e-3, 3e-2), forget_bias=(-1.0, 1.0))


def data(samples=4, **changes):
    return mgu.Data(np.zeros((samples, 5, 3), np.float32), np.zeros(samples, np.int32))._replace(**changes)


def stream(steps=50, **changes):
    return mgu.Stream(np.zeros(steps, np.int32), np.zeros(steps, np.int32))._replace(**changes)


VALIDATION = mgu.Validation(data(), (losses.cross_entropy,))


def fit(**changes):
    return mgu.fit(**({"recipe": RECIPE, "data": data(), "steps": 2, "key": KEY} | changes))


def sweep(**changes):
    return mgu.sweep(**({"recipe": RECIPE, "data": data(), "hyper": GRID, "keys": KEYS, "steps": 2} | changes))


def halving(**changes):
    options = {"recipe": RECIPE, "data": data(), "hyper": GRID, "keys": KEYS, "validation": VALIDATION}
    return mgu.halving(**(options | {"rungs": (2, 4)} | changes))


def ids(rows):
    return [" ".join(map(str, row[1:]))[:60] for row in rows]


# The state that a run continues from


def state_of(**changes):
    return mgu.start(mgu.Recipe(**({"model": LAST, "batch_size": 2} | changes)), KEY)


FIT = [
    ({"recipe": 3}, "recipe", "a Recipe", 3),
    ({"hyper": 3e-3}, "hyper", "a Hyper", 0.003),
    ({"steps": 0}, "steps", "a whole number of at least 1", 0),
    ({"steps_per_call": 0}, "steps_per_call", "a whole number of at least 1", 0),
    ({"key": 1}, "key", "one PRNG key", 1),
    ({"key": KEYS}, "key", "one PRNG key", "[2]"),
    ({"on_call": 3}, "on_call", "a function", 3),
    ({"on_call": lambda state: None}, "on_call", "callable as on_call(state, losses, scores)", "<lambda>(state)"),
    ({"on_interrupt": "keep"}, "on_interrupt", "'raise', 'return'", "'keep'"),
    ({"validation": 3}, "validation", "a Validation", 3),
    ({"validation": data()}, "validation", "a Validation", "a Data"),
    ({"checkpoints": "runs/mine"}, "checkpoints", "mgu_jax.Checkpoints", "'runs/mine'"),
    ({"devices": 64}, "devices", "at most 2", 64),
    ({"devices": 0}, "devices", "at least 1", 0),
    ({"devices": 2, "recipe": mgu.Recipe(LAST, batch_size=3)}, "devices", "divide the 3 samples", 2),
    ({"state": KEY}, "state", "a TrainState", "key<fry> []"),
    ({"state": state_of(optimizer="sgd")}, "state must match the recipe", "opt_state", "nothing"),
    ({"state": state_of(model=mgu.Model(3, (6,), 2, readout="last"))}, "state", "float32[3, 4]", "float32[3, 6]"),
    ({"state": state_of()._replace(step=jnp.int32(9))}, "steps", "at least 9", 2),
    ({"hyper": mgu.Hyper(learning_rate=jnp.ones(3))}, "hyper.learning_rate", "one number", "float32 [3]"),
    ({"hyper": mgu.Hyper(clip_norm="a")}, "hyper.clip_norm", "one number", "'a'"),
    ({"hyper": mgu.Hyper(None)}, "hyper.learning_rate", "a number or an array of numbers", None),
    ({"hyper": mgu.Hyper(jnp.zeros(0))}, "hyper.learning_rate", "at least one number", "[0]"),
    ({"hyper": mgu.Hyper(-1.0)}, "hyper.learning_rate", "at least 0", -1.0),
    ({"hyper": mgu.Hyper(clip_norm=0.0)}, "hyper.clip_norm", "above 0 (inf does not clip)", 0.0),
    ({"hyper": mgu.Hyper(clip_norm=np.nan)}, "hyper.clip_norm", "above 0 (inf does not clip)", "nan"),
    ({"hyper": mgu.Hyper(forget_bias=np.nan)}, "hyper.forget_bias", "a number", "nan"),
    ({"hyper": mgu.Hyper(momentum=1)}, "hyper.momentum", "[0, 1)", 1),
    ({"hyper": mgu.Hyper(dropout=1.5)}, "hyper.dropout", "[0, 1)", 1.5),
]


@pytest.mark.parametrize(("wrong", "name", "rule", "got"), FIT, ids=ids(FIT))
def test_fit(wrong, name, rule, got):
    rejects(lambda: fit(**wrong), name, rule, got)


# Data


def lengths(values):
    return data(lengths=np.asarray(values))


CLASSES = "[0, 2), as the model's outputs"
DATA = [
    ((data() for _ in range(3)), "data", "a Data(xs, targets) or a function of the step", "a generator"),
    (data(xs=[1]), "data.xs", "an array", "a list"),
    (data(xs=None), "data.xs", "an array", None),
    (data(targets=None), "data.targets", "an array", None),
    (data(xs=np.zeros(4)), "data.xs", "[N, T, D]", "[4]"),
    (data(xs=np.zeros((4, 5))), "data.xs", "float32 [N, T, 3], as the model reads", "[N, T]"),
    (data(xs=np.zeros((4, 5, 2), np.float32)), "data.xs", "float32 [N, T, 3]", "float32 [N, T, 2]"),
    (data(xs=np.zeros((4, 5, 3), np.uint8)), "data.xs", "scaled numbers in place of whole ones", "uint8 [N, T, 3]"),
    (data(xs=np.zeros((4, 5, 3), np.float16)), "data.xs", "float32, the dtype of params", "float16 [N, T, 3]"),
    (data(xs=np.ma.masked_array(np.zeros((4, 5, 3)))), "data.xs", "without masked entries", "a MaskedArray"),
    (data(xs=np.zeros((4, 5, 3), complex)), "data.xs", "real numbers", "complex128 [4, 5, 3]"),
    (data(targets=np.array(list("abab"))), "data.targets", "np.unique(labels, return_inverse=True)", "'a'"),
    (data(targets=np.array([0, 1, None, 1])), "data.targets", "numbers alone", "objects with None"),
    (data(targets=np.array(["a", 1, 0, 1], object)), "data.targets", "numbers alone", "objects with 'a'"),
    (data(targets=np.array([0, 1, 2, 10**30], object)), "data.targets", "real numbers", "object [4]"),
    (data(targets=[0, 1, 0, 1]), "data.targets", "an array", "a list"),
    (data(targets={"a": np.zeros(4), "b": [0, 1, 0, 1]}), "data.targets['b']", "an array", "a list"),
    (data(targets={"a": np.zeros(4), "b": np.zeros(3)}), "data.targets['b']", "4 samples", "[3]"),
    (data(targets={"a": np.zeros(4)}), "cross_entropy", "one array of outputs and one of targets", "a dict"),
    (data(targets=np.zeros(4, np.float32)), "data.targets", "whole numbers [N] for cross_entropy", "float32 [N]"),
    (tuple(data()), "data", "a Data(xs, targets)", "a tuple"),
    (lambda: data(2), "data", "callable as data(step)", "<lambda>()"),
    (data(targets=np.zeros(3)), "data.targets", "4 samples", "[3]"),
    (data(targets=np.zeros(())), "data.targets", "4 samples", "[]"),
    (data(0), "data", "at least 2 samples", 0),
    (data(1), "data", "at least 2 samples", 1),
    (data(targets=np.full(4, 2)), "data.targets", CLASSES, 2),
    (data(targets=np.full(4, -1)), "data.targets", CLASSES, -1),
    (lengths([9] * 4), "data.lengths", "[0, 5]", 9),
    (lengths([1.0] * 4), "data.lengths", "whole numbers", "float64 [4]"),
    (lengths([1] * 5), "data.lengths", "[4]", "[5]"),
    (stream(), "data", "a Data(xs, targets)", "a Stream"),
    (lambda step: None, "data", "a Data(xs, targets)", None),
    (lambda step: data(1), "data", "at least 2 samples", 1),
    (lambda step: data(3), "data", "2 samples, one batch, for step 0", 3),
    (lambda step: data(2, targets=np.full(2, 7)), "data.targets", CLASSES, 7),
    (lambda step: data(2, xs=np.zeros((2, 5, 3 + step), np.float32)), "data.xs", "one shape", "[2, 5, 4] for step 1"),
    (lengths([1, 2, 0, 3]), "data.lengths", "at least 1 for a model with readout 'last'", 0),
    (lambda step: data(2, lengths=np.array([0, 3])), "data.lengths", "at least 1", 0),
    (lambda step: data(2, lengths=np.ones(2, int) if step else None), "data.lengths", "one shape", "None for step 0"),
]


@pytest.mark.parametrize(("wrong", "name", "rule", "got"), DATA, ids=ids(DATA))
def test_data(wrong, name, rule, got):
    rejects(lambda: fit(data=wrong), name, rule, got)


STREAM = [
    (2, data(), "data", "a Stream(xs, targets) where window is given", "a Data"),
    (30, stream(), "data", "at least 60 steps, 2 rows of 30", 50),
    (2, stream(targets=np.zeros(9, int)), "data.targets", "50 steps", "[9]"),
    (2, stream(xs=np.zeros((50, 3), np.float32)), "data.xs", "tokens, whole numbers [L]", "float32 [L, 3]"),
]


@pytest.mark.parametrize(("window", "wrong", "name", "rule", "got"), STREAM, ids=ids(STREAM))
def test_streams(window, wrong, name, rule, got):
    rejects(lambda: fit(recipe=mgu.Recipe(WORDS, batch_size=2, window=window), data=wrong), name, rule, got)


@pytest.mark.parametrize("token", [-1, 10], ids=["read as the last token", "read as nan"])
def test_tokens_out_of_range(token):
    model, xs = mgu.Model(10, (4,), 3, embedding_size=2), np.full((2, 5), 3)
    xs[1, 4] = token
    samples, params = mgu.Data(xs, jnp.zeros((2, 5), int)), model.init(KEY)
    for call in (
        lambda: mgu.fit(mgu.Recipe(model, batch_size=2), samples, steps=1, key=KEY),
        lambda: mgu.evaluate(model, params, samples, (losses.accuracy,)),
        lambda: mgu.predict(model, params, samples),
    ):
        rejects(call, "data.xs", "[0, 10), as the model's tokens", token)


def test_a_model_with_reverse_layers_cannot_read_windows():
    model = mgu.Model(7, (6,), 7, embedding_size=4, bidirectional="sum")
    recipe, params = mgu.Recipe(model, batch_size=2, window=5), model.init(KEY)
    for call in (
        lambda: mgu.fit(recipe, stream(), steps=2, key=KEY),
        lambda: mgu.evaluate(model, params, stream(), (losses.accuracy,), batch_size=2, window=5),
        lambda: mgu.predict(model, params, stream(), batch_size=2, window=5),
    ):
        rejects(call, "a bidirectional model", "cannot read a stream in windows: its reverse layers begin at the end")


# Recipes


@dataclasses.dataclass
class Mutable:
    """A loss, an optimiser and a model that cannot be hashed."""

    init = LAST.init
    apply = LAST.apply

    def __call__(self, *_):
        return optax.sgd(0.1)


class Own:
    """A model of the user's own; its methods are given, and it may say what it reads out."""

    def __init__(self, apply, init=LAST.init, **attributes):
        self.apply, self.init = apply, init
        self.__dict__.update(attributes)


RECIPES = [
    ({"model": "x"}, "model", "a Model", "'x'"),
    ({"model": mgu.Model}, "model", "a Model", "a type"),
    ({"model": Mutable()}, "model", "hashable", "a Mutable"),
    ({"model": Own(LAST.apply, readout="first")}, "model.readout", "'all', 'last', 'mean'", "'first'"),
    ({"model": Own(LAST.apply), "window": 3}, "model", "a Model", "a Own"),
    ({"loss": Mutable()}, "loss", "hashable, as functions, tuples and frozen dataclasses", "a Mutable"),
    ({"loss": lambda ys: ys.mean()}, "loss", "callable as loss(ys, targets)", "<lambda>(ys)"),
    ({"optimizer": Mutable()}, "optimizer", "hashable", "a Mutable"),
    ({"loss": "cross_entropy"}, "loss", "a function, such as mgu_jax.losses.cross_entropy", "'cross_entropy'"),
    ({"optimizer": optax.adam(1e-3)}, "optimizer", "a function of Hyper", "a GradientTransformationExtraArgs"),
    ({"optimizer": optax.adam}, "optimizer", "lambda hyper: optax.adam(hyper.learning_rate)", "optax.adam itself"),
    ({"optimizer": lambda hyper: 0.1}, "optimizer", "return an optax.GradientTransformation", 0.1),
    ({"optimizer": "adagrad"}, "optimizer", "'sgd', 'momentum', 'adam', 'adamw', 'rmsprop'", "'adagrad'"),
    ({"schedule": "cosine"}, "total_steps", "schedule 'cosine', and be above warmup_steps, 0", None),
    ({"schedule": "step"}, "schedule", "'constant', 'cosine', 'linear'", "'step'"),
    ({"optimizer": lambda hyper: optax.sgd(1.0), "warmup_steps": 3}, "warmup_steps", "left out", "None and 3"),
    ({"batch_size": 0}, "batch_size", "a whole number of at least 1", 0),
    ({"window": 0}, "window", "a whole number of at least 1", 0),
]


@pytest.mark.parametrize(("wrong", "name", "rule", "got"), RECIPES, ids=ids(RECIPES))
def test_recipe(wrong, name, rule, got):
    rejects(lambda: mgu.Recipe(**({"model": LAST} | wrong)), name, rule, got)


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_an_optimiser_whose_epsilon_is_zero(name):
    recipe = mgu.Recipe(mgu.Model(3, (4,), 2, readout="last", dtype="float16"), batch_size=2, optimizer=name)
    rejects(lambda: fit(recipe=recipe), f"optimizer '{name}'", "float32, float64 or bfloat16", "float16")


def sum_of_parts(ys, targets):
    return ys["a"] + ys["b"]


LOSSES = [
    (lambda ys, targets: ys[:, 0], "what <lambda> returns", "a number", "float32 [2]"),
    (lambda ys, targets: None, "what <lambda> returns", "a number", "None"),
    (lambda ys, targets: ys.argmax(), "what <lambda> returns", "a floating number", "int32 []"),
    (lambda ys, targets: ys.mean() * 1j, "what <lambda> returns", "a number", "complex64 []"),
    (sum_of_parts, "sum_of_parts", "accept ys float32 [2, 2] and targets int32 [2]; it raised TypeError", "idx='a'"),
]


@pytest.mark.parametrize(("loss", "name", "rule", "got"), LOSSES, ids=ids(LOSSES))
def test_a_loss_that_gives_something_else(loss, name, rule, got):
    for train in (fit, sweep):
        rejects(lambda train=train: train(recipe=mgu.Recipe(LAST, loss, batch_size=2)), name, rule, got)
    validation = mgu.Validation(data(), (losses.accuracy, loss))
    if "floating" not in rule:  # a metric may count
        rejects(lambda: fit(validation=validation), "validation must fit the model", rule.split(" float32")[0])


def test_a_loss_that_takes_no_mask_where_there_is_one():
    recipe = mgu.Recipe(mgu.Model(3, (4,), 2), lambda ys, targets: ys.mean(), batch_size=2)
    wrong = data(targets=np.zeros((4, 5)), lengths=np.ones(4, int))
    rejects(lambda: fit(recipe=recipe, data=wrong), "<lambda>", "a mask as its third argument", "<lambda>(ys, targets)")


NAN = np.array([[0, 1], [1, 0], [0, np.nan], [1, 1]])
NUMBERS = [
    (losses.squared_error, NAN, "be finite (a mask leaves steps out)", "nan"),
    (losses.squared_error, NAN + np.inf, "be finite", "inf"),
    (losses.squared_error, NAN[:, :1], "numbers [N, 2] for squared_error", "[N, 1]"),
    (losses.binary_cross_entropy, np.nan_to_num(NAN) * 2, "[0, 1]", "2.0"),
]


@pytest.mark.parametrize(("loss", "targets", "rule", "got"), NUMBERS, ids=ids(NUMBERS))
def test_targets_that_our_own_losses_cannot_use(loss, targets, rule, got):
    wrong = data(targets=targets)
    rejects(lambda: fit(recipe=mgu.Recipe(LAST, loss, batch_size=2), data=wrong), "data.targets", rule, got)
    rejects(lambda: mgu.evaluate(LAST, LAST.init(KEY), wrong, (loss,)), "data.targets", rule, got)


ALL = mgu.Model(3, (4,), 2)
MODELS = [
    (
        Own(lambda params, xs: xs),
        "model.apply",
        "callable as model.apply(params, xs, key=, training=)",
        "<lambda>(params, xs)",
    ),
    (Own(LAST.apply, init=lambda key: None), "model.init", "forget_bias=", "<lambda>(key)"),
    (
        Own(lambda params, xs, **_: xs @ xs),
        "model.apply",
        "accept xs float32 [5, 2, 3]; it raised TypeError",
        "(3,) and (2,)",
    ),
    (Own(ALL.apply, ALL.init), "model.apply", "declares it by an attribute readout = 'all'", "[5, 2, 2] for T = 5"),
    (Own(LAST.apply, readout="all"), "model.apply", "as its readout 'all' declares", "[2, 2] for T = 5 and B = 2"),
    (Own(lambda params, xs, **_: {"a": xs[0], "b": "text"}), "model.apply['b']", "arrays", "'text'"),
]


@pytest.mark.parametrize(("model", "name", "rule", "got"), MODELS, ids=ids(MODELS))
def test_a_model_that_gives_something_else_than_it_declares(model, name, rule, got):
    rejects(lambda: fit(recipe=mgu.Recipe(model, lambda *_: 0.0, batch_size=2)), name, rule, got)


def test_the_axes_of_outputs_are_told_apart_where_steps_and_samples_are_equal():
    recipe = mgu.Recipe(Own(ALL.apply, ALL.init), lambda *_: 0.0, batch_size=5)
    rejects(lambda: fit(recipe=recipe, data=data(5)), "model.apply", "readout = 'all'", "[5, 6, 2] for T = 5 and B = 6")


def test_targets_that_are_not_one_per_step():
    recipe = mgu.Recipe(ALL, lambda *_: 0.0, batch_size=2)
    rejects(lambda: fit(recipe=recipe, data=data(targets=np.zeros((4, 3)))), "data.targets", "[N, 5, ...]", "[N, 3]")


def test_labels_for_a_model_that_reads_out_every_step():
    recipe = mgu.Recipe(mgu.Model(3, (4,), 2), batch_size=2)
    rejects(lambda: fit(recipe=recipe), "data.targets", "whole numbers [N, 5]", "int32 [N]")


def test_more_steps_than_the_schedule_has():
    recipe = mgu.Recipe(LAST, schedule="cosine", total_steps=10, batch_size=2)
    rejects(lambda: fit(recipe=recipe, steps=11), "steps", "at most 10, the schedule's total_steps", 11)


# Losses


YS = jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]])


@pytest.mark.parametrize("function", [losses.cross_entropy, losses.accuracy])
@pytest.mark.parametrize("targets", [np.array([[1], [2]]), np.array([1, 2, 0]), np.array([1.0, 2.0], np.float32)])
def test_labels_that_do_not_fit(function, targets):
    rejects(lambda: jax.jit(function)(YS, targets), "targets", "whole numbers [2] (the model returns [2, 3])", "got")


def test_squared_error_does_not_broadcast():
    rejects(lambda: losses.squared_error(YS, YS[:, :1]), "targets", "[2, 3]", "[2, 1]")


# Evaluation and validation


EVALUATE = [
    ({"metrics": 3}, "metrics", "a tuple of functions, at least one", 3),
    ({"metrics": ()}, "metrics", "a tuple of functions, at least one", ()),
    ({"model": None}, "model", "a Model", None),
    ({"metrics": (lambda ys, targets: ys,)}, "what <lambda> returns", "a number", "float32 [4, 2]"),
    ({"data": data(targets=np.full(4, -1))}, "data.targets", CLASSES, -1),
    ({"data": data(targets=np.full(4, 2))}, "data.targets", CLASSES, 2),
    ({"data": None}, "data", "a Data(xs, targets)", None),
    ({"data": stream()}, "data", "a Data(xs, targets)", "a Stream"),
    ({"window": 5}, "data", "a Stream(xs, targets) where window is given", "a Data"),
    ({"batch_size": 0}, "batch_size", "at least 1", 0),
    ({"zoneout": 1.5}, "zoneout", "a number in [0, 1)", 1.5),
    ({"key": KEY}, "a rate", "'dropout', 'recurrent_dropout', 'zoneout', 'dropconnect'", "'key'"),
]


@pytest.mark.parametrize(("wrong", "name", "rule", "got"), EVALUATE, ids=ids(EVALUATE))
def test_evaluate(wrong, name, rule, got):
    options = {"model": LAST, "params": LAST.init(KEY), "data": data(), "metrics": (losses.accuracy,)} | wrong
    rejects(lambda: mgu.evaluate(**options), name, rule, got)
    if "metrics" not in wrong and "targets" not in name:
        del options["metrics"]
        rejects(lambda: mgu.predict(**options), name, rule, got)


MEASURED = [
    ({"metrics": ()}, "metrics", "a tuple of functions, at least one", ()),
    ({"metrics": (losses.accuracy, Mutable())}, "metrics[1]", "hashable", "a Mutable"),
    ({"metrics": (losses.accuracy, lambda ys: ys)}, "metrics[1]", "loss(ys, targets)", "<lambda>(ys)"),
    ({"metrics": ("accuracy",)}, "metrics", "a tuple of functions, at least one", "('accuracy',)"),
    ({"patience": 0}, "patience", "at least 1", 0),
    ({"every": 0}, "every", "at least 1", 0),
    (
        {"metrics": (losses.cross_entropy,), "higher_is_better": True},
        "higher_is_better",
        "False where the first metric is cross_entropy",
        True,
    ),
    ({"higher_is_better": False}, "higher_is_better", "True where the first metric is accuracy", False),
    ({"higher_is_better": "yes"}, "higher_is_better", "one of None, False, True", "'yes'"),
]


@pytest.mark.parametrize(("wrong", "name", "rule", "got"), MEASURED, ids=ids(MEASURED))
def test_validation(wrong, name, rule, got):
    rejects(lambda: mgu.Validation(**({"data": data(), "metrics": (losses.accuracy,)} | wrong)), name, rule, got)


UNFIT = [
    (None, "validation.data", "a Data(xs, targets)", None),
    (data(targets=np.full(4, 7)), "validation.data.targets", CLASSES, 7),
    (data(targets=np.zeros((4, 6), int)), "validation.data.targets", "whole numbers [N]", "int32 [N, 6]"),
    (data(xs=np.ones((4, 6, 4), np.float32)), "validation.data.xs", "float32 [N, T, 3]", "[N, T, 4]"),
]


@pytest.mark.parametrize(("wrong", "name", "rule", "got"), UNFIT, ids=ids(UNFIT))
def test_a_validation_that_does_not_fit_is_refused_before_the_first_step(wrong, name, rule, got):
    validation, trained = mgu.Validation(wrong, (losses.accuracy,)), []
    for run in (fit, sweep):
        rejects(lambda run=run: run(validation=validation, on_call=lambda *_: trained.append(1)), name, rule, got)
    assert not trained


def f1(ys, targets):
    return ys.mean()


@pytest.mark.parametrize("train", [fit, sweep, halving, lambda **options: mgu.start(RECIPE, KEY, **options)])
def test_a_metric_whose_direction_nothing_tells(train):
    validation = mgu.Validation(data(), (f1, losses.accuracy))
    rejects(lambda: train(validation=validation), "validation.higher_is_better", "True or False", "None", ValueError)


def test_the_runs_own_loss_cannot_be_better_when_higher():
    validation = mgu.Validation(data(), (f1,), higher_is_better=True)
    recipe = mgu.Recipe(LAST, f1, batch_size=2)
    rejects(lambda: fit(recipe=recipe, validation=validation), "validation.higher_is_better", "False where", "True")


# First states


START = [
    ({"recipe": 3}, "recipe", "a Recipe", 3),
    ({"hyper": 3}, "hyper", "a Hyper", 3),
    ({"key": 3}, "key", "one PRNG key", 3),
    ({"key": KEYS[None]}, "key", "one PRNG key", "[1, 2]"),
    ({"validation": 3}, "validation", "a Validation", 3),
    ({"hyper": GRID}, "hyper.learning_rate", "one number (mgu_jax.sweep takes several)", "float32 [4]"),
    ({"hyper": mgu.Hyper(-1.0)}, "hyper.learning_rate", "at least 0", -1.0),
]


@pytest.mark.parametrize(("wrong", "name", "rule", "got"), START, ids=ids(START))
def test_start(wrong, name, rule, got):
    rejects(lambda: mgu.start(**({"recipe": RECIPE, "key": KEY} | wrong)), name, rule, got)


# Sweeps


def halves(**changes):
    return mgu.Validation(data(), (losses.accuracy,), **changes)


SWEEP = [
    ({"hyper": 1e-3}, "hyper", "a Hyper", 0.001),
    ({"hyper": GRID._replace(weight_decay=jnp.ones(3))}, "hyper.weight_decay", "a number or have shape [4]", "[3]"),
    ({"hyper": mgu.Hyper(jnp.ones((2, 2)))}, "hyper.learning_rate", "a number or have shape [2]", "[2, 2]"),
    ({"hyper": mgu.Hyper([1e-3, 1e-2])}, "hyper.learning_rate", "a number or an array of numbers", "a list"),
    ({"hyper": mgu.Hyper((1e-3,))}, "hyper.learning_rate", "a number or an array of numbers", "a tuple"),
    ({"hyper": mgu.Hyper("fast")}, "hyper.learning_rate", "a number or an array of numbers", "'fast'"),
    ({"hyper": mgu.Hyper(zoneout=jnp.array([0.5, 1.0]))}, "hyper.zoneout", "[0, 1)", 1.0),
    ({"keys": KEYS[0]}, "keys", "PRNG keys [seeds]", "key<fry> []"),
    ({"keys": 3}, "keys", "PRNG keys [seeds]", 3),
    ({"devices": 64}, "devices", "at most 2", 64),
    ({"devices": 2, "hyper": mgu.Hyper(), "keys": KEYS[:1]}, "devices", "divide the 1 members", 2),
    ({"state": 3}, "state", "a Sweep of 8 members, 4 settings with 2 seeds", 3),
    ({"state": mgu.start(RECIPE, KEYS)}, "state", "a Sweep of 8 members, 4 settings with 2 seeds", "one of 2"),
    (
        {"state": mgu.start(mgu.Recipe(LAST, optimizer="sgd", batch_size=2), KEYS, GRID)},
        "state",
        "opt_state",
        "nothing",
    ),
    ({"at_once": 0}, "at_once", "a whole number of at least 1", 0),
]


@pytest.mark.parametrize(("wrong", "name", "rule", "got"), SWEEP, ids=ids(SWEEP))
def test_sweep(wrong, name, rule, got):
    rejects(lambda: sweep(**wrong), name, rule, got)


AXES = [
    (lambda: mgu.grid(), "axes", "named, such as learning_rate=(1e-3, 1e-2)", "none"),
    (lambda: mgu.grid(learning_rate=()), "learning_rate", "a row of numbers, at least one", ()),
    (lambda: mgu.grid(learning_rate=["a"]), "learning_rate", "a row of numbers, at least one", ["a"]),
    (lambda: mgu.grid(learning_rate=[[1], [2, 3]]), "learning_rate", "a row of numbers", [[1], [2, 3]]),
    (lambda: mgu.grid(rate=(1,)), "an axis of the sweep", "'learning_rate', 'weight_decay'", "'rate'"),
    (lambda: mgu.draw(3, 8), "key", "one PRNG key", 3),
    (lambda: mgu.draw(KEY, 8, learning_rate=1e-3), "learning_rate", "such as mgu_jax.uniform(low, high)", 0.001),
    (lambda: mgu.draw(KEY, 4, momentum=lambda key, count: jnp.ones(3)), "momentum", "returns [4]", "float32 [3]"),
    (lambda: mgu.uniform(1, 0), "low", "below high, and both finite", "1 and 0"),
    (lambda: mgu.uniform(0, math.inf), "low", "below high, and both finite", "0 and inf"),
    (lambda: mgu.uniform(1, None), "high", "a number", None),
    (lambda: mgu.log_uniform(0, 1), "low", "0 < low < high", "0 and 1"),
    (lambda: mgu.log_uniform(1, None), "high", "a number", None),
]


@pytest.mark.parametrize(("call", "name", "rule", "got"), AXES, ids=ids(AXES))
def test_axes(call, name, rule, got):
    rejects(call, name, rule, got)


def test_best_member_and_member_rows():
    swept = mgu.start(RECIPE, KEYS, GRID, validation=VALIDATION)
    without = mgu.start(RECIPE, KEYS, GRID)
    three = as_settings(mgu.Hyper(jnp.ones(3)))[0]
    for call, name, rule, got in (
        (lambda: mgu.best_member(None, GRID, VALIDATION), "state", "a Sweep", None),
        (lambda: mgu.best_member(swept, GRID, None), "validation", "the Validation of the sweep", None),
        (lambda: mgu.best_member(swept, three, VALIDATION), "hyper", "divide its 8 members", 3),
        (lambda: mgu.best_member(without, GRID, VALIDATION), "state", "a sweep with a validation", "without scores"),
        (lambda: mgu.best_member(swept, GRID, VALIDATION), "state", "a member with a score", "all were frozen"),
        (lambda: member_rows(swept, three), "hyper", "divide its 8 members", 3),
    ):
        rejects(call, name, rule, got)


HALVING = [
    ({"recipe": 3}, "recipe", "a Recipe", 3),
    ({"hyper": None}, "hyper", "a Hyper", None),
    ({"keys": 3}, "keys", "PRNG keys [seeds]", 3),
    ({"keys": KEYS[0]}, "keys", "PRNG keys [seeds]", "key<fry> []"),
    ({"validation": None}, "validation", "a Validation", None),
    ({"rungs": (2, "a")}, "rungs", "a rising row of steps, at least one", (2, "a")),
    ({"rungs": (2.5, 4)}, "rungs", "a rising row of steps, at least one", (2.5, 4)),
    ({"rungs": (5, 5)}, "rungs", "a rising row of steps, at least one", (5, 5)),
    ({"rungs": ()}, "rungs", "a rising row of steps, at least one", ()),
    ({"rungs": 4}, "rungs", "a rising row of steps, at least one", 4),
    ({"fraction": "half"}, "fraction", "a number between 0 and 1", "'half'"),
    ({"fraction": 1.0}, "fraction", "a number between 0 and 1", 1.0),
    ({"devices": "a"}, "devices", "a whole number of at least 1", "'a'"),
    ({"state": mgu.start(RECIPE, KEYS, GRID)}, "state", "a Halving, as on_call receives it", "a Sweep"),
    (
        {"state": mgu.Halving(mgu.start(RECIPE, KEYS, GRID), np.arange(3))},
        "state",
        "one of 4 settings with rungs (2, 4)",
        "3 settings at step 0",
    ),
]


@pytest.mark.parametrize(("wrong", "name", "rule", "got"), HALVING, ids=ids(HALVING))
def test_halving(wrong, name, rule, got):
    rejects(lambda: halving(**wrong), name, rule, got)


class Half:
    """Some of what a run needs of its checkpoints."""

    def restore(self, like, step=None):
        return None

    def save(self, step, state, *, config=None):
        pass


@pytest.mark.parametrize("train", [fit, sweep, halving])
def test_checkpoints_that_lack_a_method(train):
    rejects(lambda: train(checkpoints=Half()), "checkpoints", "an mgu_jax.Checkpoints", "a Half", TypeError)


def test_a_folder_of_checkpoints_that_is_no_path():
    rejects(lambda: mgu.Checkpoints(None), "folder", "a path", "None", TypeError)


def needs_a_hessian(updates, state, params=None, *, hessian, **more):
    """The update of an optimiser that asks for what no run has."""


OWN_OPTIMIZERS = [
    (lambda rate: optax.sgd(rate), "'tuple'"),
    (lambda hyper: optax.adam(hyper.rate), "no attribute 'rate'"),
    (lambda hyper: optax.GradientTransformationExtraArgs(lambda p: (), needs_a_hessian), "'hessian'"),
]


@pytest.mark.parametrize(("optimizer", "got"), OWN_OPTIMIZERS, ids=[got for _, got in OWN_OPTIMIZERS])
def test_an_optimizer_that_cannot_update_is_named_before_the_first_step(optimizer, got):
    recipe = mgu.Recipe(mgu.Model(3, (4,), 2, readout="last"), optimizer=optimizer)
    rejects(lambda: mgu.start(recipe, jax.random.key(0)), "optimizer", "lambda hyper", got)
