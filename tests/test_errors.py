"""Every wrong argument gets one sentence: the argument, the rule, what came."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mgu_jax as mgu
from mgu_jax.interop import export, files
from mgu_jax.training import checkpoint, losses

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def params():
    return mgu.init(KEY, 32, 64)


def raised(kind, function):
    with pytest.raises(kind) as caught:
        function()
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


XS, H0 = jnp.zeros((100, 8, 32)), jnp.zeros((8, 64))


def test_tokens():
    model = mgu.Model(10, (4,), 3, embedding_size=2)
    for token in (-1, 10):  # which would be taken for the last one, and for nan
        xs = np.full((5, 2), 3)
        xs[4, 1] = token
        samples = mgu.Data(xs.T, jnp.zeros((2, 5), int))
        recipe = mgu.Recipe(model, batch_size=2)
        text = raised(ValueError, lambda r=recipe, d=samples: mgu.fit(r, d, steps=1, key=KEY))
        assert text == f"data.xs must lie in [0, 10), as the model's tokens; got {token}."
        text = raised(ValueError, lambda d=samples: mgu.evaluate(model, model.init(KEY), d, (losses.accuracy,)))
        assert text == f"data.xs must lie in [0, 10), as the model's tokens; got {token}."


def test_metrics_and_a_summary():
    model = mgu.Model(3, (4,), 2, readout="last")
    params = model.init(KEY)
    text = raised(TypeError, lambda: mgu.evaluate(model, params, data(), 3))
    assert text == "metrics must be a tuple of functions, at least one; got 3."
    text = raised(TypeError, lambda: mgu.evaluate(None, params, data(), (losses.accuracy,)))
    assert text == "model must be a Model, as mgu_jax.Model makes it; got None."
    text = raised(TypeError, lambda: mgu.evaluate(model, params, data(), (lambda ys, targets: ys,)))
    assert text == "what <lambda> returns must be a number; got float32 [4, 2]."
    for label in (-1, 2):  # which would be taken for the last class, and for nan
        samples = data()._replace(targets=np.full(4, label))
        text = raised(ValueError, lambda samples=samples: mgu.evaluate(model, params, samples, (losses.accuracy,)))
        assert text == f"data.targets must lie in [0, 2), as the model's outputs; got {label}."
    text = raised(ValueError, lambda: mgu.evaluate(model, params, data(), (losses.accuracy,), zoneout=1.5))
    assert text == "zoneout must be a number in [0, 1); got 1.5."
    text = raised(ValueError, lambda: mgu.evaluate(model, params, data(), (losses.accuracy,), key=KEY))
    assert text == "a rate must be one of 'dropout', 'recurrent_dropout', 'zoneout', 'dropconnect'; got 'key'."
    text = raised(TypeError, lambda: mgu.summary(params))
    assert text == "params must be an mgu_jax.Params, such as one of a model's layers; got a ModelParams."
    text = raised(TypeError, lambda: mgu.summary(params.layers[0]._replace(W_h=None)))
    assert text == "params.W_h must be an array; got a NoneType."


def data(samples=4, **changes):
    return mgu.Data(np.zeros((samples, 5, 3), np.float32), np.zeros(samples, np.int32))._replace(**changes)


TRAIN = [
    (
        TypeError,
        {"data": (data() for _ in range(3))},
        "data must be a Data(xs, targets) or a function of the step that makes one; got a generator.",
    ),
    (
        ValueError,
        {"data": lambda step: data(2, xs=np.zeros((2, 5 + step, 3), np.float32)), "steps": 2},
        "data must give batches of one shape; "
        "data.xs is float32 [2, 5, 3] for step 0 and float32 [2, 6, 3] for step 1.",
    ),
    (
        ValueError,
        {"data": lambda step: data(2, lengths=np.ones(2, int) if step else None), "steps": 2},
        "data must give batches of one shape; data.lengths is None for step 0 and int64 [2] for step 1.",
    ),
    (ValueError, {"hyper": mgu.Hyper(clip_norm=0.0)}, "hyper.clip_norm must be above 0 (inf does not clip); got 0.0."),
    (ValueError, {"hyper": mgu.Hyper(forget_bias=np.nan)}, "hyper.forget_bias must be a number; got nan."),
    (TypeError, {"hyper": mgu.Hyper(None)}, "hyper.learning_rate must be a number or an array of them; got None."),
    (
        ValueError,
        {"hyper": mgu.Hyper(jnp.zeros(0))},
        "hyper.learning_rate must hold at least one number; got shape [0].",
    ),
    (TypeError, {"data": data(xs=[1])}, "data.xs must be an array; got a list."),
    (ValueError, {"data": data(xs=np.zeros((4, 5)))}, "data.xs must have shape [N, T, D]; got [4, 5]."),
    (ValueError, {"data": data(targets=np.zeros(3))}, "data.targets must have 4 samples, as data.xs; got shape [3]."),
    (ValueError, {"data": data(targets=np.zeros(()))}, "data.targets must have 4 samples, as data.xs; got shape []."),
    (TypeError, {"hyper": 3e-3}, "hyper must be a Hyper; got 0.003."),
    (TypeError, {"recipe": 3}, "recipe must be a Recipe; got 3."),
    (TypeError, {"state": KEY}, "state must be a TrainState; got key<fry> []."),
    (TypeError, {"on_call": 3}, "on_call must be a function; got 3."),
    (TypeError, {"validation": 3}, "validation must be a Validation; got 3."),
    (ValueError, {"data": data(0)}, "data must have at least as many samples as a batch, 2; got 0."),
    (ValueError, {"data": data(1)}, "data must have at least as many samples as a batch, 2; got 1."),
    (ValueError, {"steps": 0}, "steps must be a whole number of at least 1; got 0."),
    (ValueError, {"steps_per_call": 0}, "steps_per_call must be a whole number of at least 1; got 0."),
    (TypeError, {"key": 1}, "key must be one PRNG key, as jax.random.key(0) makes it; got 1."),
]


@pytest.mark.parametrize(("kind", "wrong", "text"), TRAIN, ids=[text[:50] for *_, text in TRAIN])
def test_fit(kind, wrong, text):
    recipe = mgu.Recipe(mgu.Model(3, (4,), 2, readout="last"), batch_size=2)
    arguments = {"recipe": recipe, "data": data(), "steps": 1, "key": KEY} | wrong
    assert raised(kind, lambda: mgu.fit(**arguments)) == text


@pytest.mark.parametrize(("value", "came"), [([1e-3, 1e-2], "a list"), ((1e-3,), "a tuple"), ("fast", "'fast'")])
def test_settings_of_a_sweep(value, came):
    recipe, hyper = mgu.Recipe(mgu.Model(3, (4,), 2, readout="last"), batch_size=2), mgu.Hyper(learning_rate=value)
    text = raised(TypeError, lambda: mgu.sweep(recipe, data(), hyper=hyper, keys=jax.random.split(KEY, 1), steps=1))
    assert text == f"hyper.learning_rate must be a number or an array of them; got {came}."


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_an_optimizer_whose_epsilon_is_zero(name):
    model = mgu.Model(3, (4,), 2, readout="last", dtype="float16")
    recipe = mgu.Recipe(model, batch_size=2, optimizer=name)
    assert raised(TypeError, lambda: mgu.fit(recipe, data(), steps=1, key=KEY)) == (
        f"optimizer {name!r} needs params of float32, float64 or bfloat16, since its epsilon of 1e-8 is zero in "
        "float16; got float16."
    )


def test_a_loss_of_many_numbers():
    recipe = mgu.Recipe(mgu.Model(3, (4,), 2, readout="last"), lambda ys, targets: ys[:, 0], batch_size=2)
    text = raised(TypeError, lambda: mgu.fit(recipe, data(), steps=1, key=KEY))
    assert text == "what <lambda> returns must be a number; got float32 [2]."


def test_labels_for_a_model_that_reads_out_every_step():
    recipe = mgu.Recipe(mgu.Model(3, (4,), 2), batch_size=2)
    text = raised(ValueError, lambda: mgu.fit(recipe, data(), steps=1, key=KEY))
    assert text == "targets must be whole numbers [5, 2] (the model gives [5, 2, 2]); got int32 [2]."


def test_recipe():
    model = mgu.Model(3, (4,), 2)
    text = raised(TypeError, lambda: mgu.Recipe(model, loss="cross_entropy"))
    assert text == "loss must be a function, such as mgu_jax.losses.cross_entropy; got 'cross_entropy'."
    text = raised(TypeError, lambda: mgu.Recipe(model, optimizer=optax.adam(1e-3)))
    assert text == (
        "optimizer must be one of 'sgd', 'momentum', 'adam', 'adamw', 'rmsprop' or a function of Hyper; "
        "got a GradientTransformationExtraArgs."
    )
    for function in (optax.adam, lambda rate: optax.sgd(rate)):
        text = raised(TypeError, lambda function=function: mgu.Recipe(model, optimizer=function))
        assert text == (
            "optimizer must be a function of Hyper, such as lambda hyper: optax.adam(hyper.learning_rate); "
            "got one that takes a Hyper for a number."
        )
    text = raised(TypeError, lambda: mgu.Recipe(model, optimizer=lambda hyper: 0.1))
    assert text == "optimizer must return an optax.GradientTransformation; got 0.1."
    text = raised(ValueError, lambda: mgu.Recipe(model, optimizer="adagrad"))
    assert text == "optimizer must be one of 'sgd', 'momentum', 'adam', 'adamw', 'rmsprop'; got 'adagrad'."
    text = raised(ValueError, lambda: mgu.Recipe(model, schedule="cosine"))
    assert text == "total_steps must be given for schedule 'cosine', and above warmup_steps, 0; got None."
    text = raised(ValueError, lambda: mgu.Recipe(model, schedule="step"))
    assert text == "schedule must be one of 'constant', 'cosine', 'linear'; got 'step'."
    text = raised(ValueError, lambda: mgu.Recipe(model, optimizer=lambda hyper: optax.sgd(1.0), warmup_steps=3))
    assert (
        text == "schedule, total_steps and warmup_steps must be left out where optimizer is a function; they are not."
    )
    assert raised(ValueError, lambda: mgu.Recipe(model, batch_size=0)).startswith("batch_size must be a whole number")


def test_what_names_no_file(params):
    for asked in (lambda: files.save(None, mgu.MGU, params), lambda: files.load(None), lambda: export.save(None, 0, 0)):
        assert raised(TypeError, asked) == "path must be a text or a path; got None."
    assert raised(TypeError, lambda: checkpoint.Checkpoints(None)) == "folder must be a text or a path; got None."
