"""Every wrong argument gets one sentence: the argument, the rule, what came."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mgu_jax as mgu
from mgu_jax.interop import export, files
from mgu_jax.layer.reverse_only import SENTENCE
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

SCAN = [
    (
        ValueError,
        {"xs": jnp.zeros((100, 8, 16))},
        "xs must have shape [T, ..., 32] (params.W_h is [32, 64]); got [100, 8, 16].",
    ),
    (ValueError, {"xs": jnp.zeros(32)}, "xs must have shape [T, ..., 32] (params.W_h is [32, 64]); got [32]."),
    (ValueError, {"xs": jnp.zeros(())}, "xs must have shape [T, ..., 32] (params.W_h is [32, 64]); got []."),
    (TypeError, {"xs": [[0.0] * 32]}, "xs must be an array; got a list."),
    (TypeError, {"xs": None}, "xs must be an array; got None."),
    (TypeError, {"xs": 1.5}, "xs must be an array; got 1.5."),
    (TypeError, {"xs": XS.astype(int)}, "xs must be float32 (the dtype of params); got int32 [100, 8, 32]."),
    (
        TypeError,
        {"xs": XS.astype(jnp.complex64)},
        "xs must be float32 (the dtype of params); got complex64 [100, 8, 32].",
    ),
    (
        TypeError,
        {"xs": XS.astype(jnp.bfloat16)},
        "xs must be float32 (the dtype of params); got bfloat16 [100, 8, 32].",
    ),
    (TypeError, {"xs": KEY}, "xs must be float32 (the dtype of params); got key<fry> []."),
    (
        ValueError,
        {"h0": jnp.zeros((8, 32))},
        "h0 must have shape [..., 64] (params.b_h is [64]); got [8, 32].",
    ),
    (
        ValueError,
        {"h0": jnp.zeros((4, 64))},
        "h0 must have shape [8, 64] (the batch of xs and the width of params); got [4, 64].",
    ),
    (
        ValueError,
        {"h0": jnp.zeros(64)},
        "h0 must have shape [8, 64] (the batch of xs and the width of params); got [64].",
    ),
    (
        TypeError,
        {"h0": H0.astype(jnp.float16)},
        "h0 must be float32 (the dtype of params); got float16 [8, 64].",
    ),
    (TypeError, {"h0": [0.0] * 64}, "h0 must be an array; got a list."),
    (
        ValueError,
        {"implementation": "fast"},
        "implementation must be one of None, 'manual', 'autodiff', 'parallel'; got 'fast'.",
    ),
    (
        ValueError,
        {"precision": "exact"},
        "precision must be one of None, 'default', 'high', 'highest'; got 'exact'.",
    ),
    (TypeError, {"cell": "MGU"}, "cell must be an mgu_jax.Cell, such as mgu_jax.MGU; got 'MGU'."),
    (
        ValueError,
        {"implementation": "parallel"},
        "implementation 'parallel' needs a cell whose gate and candidate do not see the state, such as MIN_GRU; "
        "got gate='xhb', candidate='xhb'.",
    ),
    (
        ValueError,
        {"compute_dtype": jnp.int8},
        "compute_dtype must be one of None, 'bfloat16', 'float16', 'float32', 'float64'; got 'int8'.",
    ),
    (TypeError, {"compute_dtype": "half-ish"}, "compute_dtype must be a dtype; got 'half-ish'."),
    (TypeError, {"lengths": [1] * 8}, "lengths must be an array of whole numbers; got a list."),
    (TypeError, {"lengths": np.ones(8)}, "lengths must be an array of whole numbers; got float64 [8]."),
    (ValueError, {"lengths": np.ones(4, int)}, "lengths must have shape [8] (the batch of xs); got [4]."),
    (
        ValueError,
        {"lengths": np.arange(8) * 20},
        "lengths must lie in [0, 100] (xs has 100 steps); got 120.",
    ),
    (ValueError, {"lengths": np.arange(8) - 3}, "lengths must lie in [0, 100] (xs has 100 steps); got -3."),
    (TypeError, {"resets": np.ones((100, 8))}, "resets must be an array of bool; got float64 [100, 8]."),
    (TypeError, {"resets": True}, "resets must be an array of bool; got True."),
    (ValueError, {"reset_to": H0}, "reset_to must be left out where resets is; got float32 [8, 64]."),
    (
        ValueError,
        {"resets": np.ones((100, 8), bool), "reset_to": H0[0]},
        "reset_to must have shape [8, 64] (the batch of xs and the width of params); got [64].",
    ),
    (
        ValueError,
        {"resets": np.ones(100, bool)},
        "resets must have shape [100, 8] (the steps and the batch of xs); got [100].",
    ),
    (ValueError, {"zoneout": 1.0}, "zoneout must be a number in [0, 1); got 1.0."),
    (ValueError, {"recurrent_dropout": -0.1}, "recurrent_dropout must be a number in [0, 1); got -0.1."),
    (ValueError, {"dropconnect": np.zeros(2)}, "dropconnect must be a number in [0, 1); got float64 [2]."),
    (ValueError, {"zoneout": "half"}, "zoneout must be a number in [0, 1); got 'half'."),
    (ValueError, {"reverse": "no"}, "reverse must be one of False, True; got 'no'."),
    (ValueError, {"reverse": H0}, "reverse must be one of False, True; got float32 [8, 64]."),
    (ValueError, {"precision": 3}, "precision must be one of None, 'default', 'high', 'highest'; got 3."),
    (TypeError, {"key": 3}, "key must be one PRNG key, as jax.random.key(0) makes it; got 3."),
    (ValueError, {"save": "all"}, "save must be one of 'gates', 'states', 'segments'; got 'all'."),
    (ValueError, {"save": None}, "save must be one of 'gates', 'states', 'segments'; got None."),
    (ValueError, {"segment": 0}, "segment must be a whole number of at least 1; got 0."),
    (ValueError, {"segment": 2.5}, "segment must be a whole number of at least 1; got 2.5."),
    (
        ValueError,
        {"save": "states", "implementation": "autodiff"},
        "save and segment must be left out where implementation is 'autodiff' (only 'manual' uses them); "
        "got 'states' and None.",
    ),
]


@pytest.mark.parametrize(("kind", "wrong", "text"), SCAN, ids=[text[:50] for *_, text in SCAN])
def test_scan(params, kind, wrong, text):
    arguments = {"params": params, "xs": XS, "h0": H0} | wrong
    assert raised(kind, lambda: mgu.scan(**arguments)) == text


def test_errors_come_under_jit_too(params):
    assert raised(ValueError, lambda: jax.jit(mgu.scan)(params, XS[..., :16])).startswith("xs must have shape")


PARAMS = [
    (TypeError, lambda p: tuple(p), "params must be an mgu_jax.Params, as mgu_jax.init makes it; got a tuple."),
    (ValueError, lambda p: p._replace(W_f=None), "params.W_f must have shape [32, 64] (the cell needs it); got None."),
    (
        ValueError,
        lambda p: p._replace(b_r=p.b_h),
        "params.b_r must be None (the cell has no such term); got float32 [64].",
    ),
    (
        ValueError,
        lambda p: p._replace(U_f=p.W_f),
        "params.U_f must have shape [64, 64] (params.W_h is [32, 64]); got [32, 64].",
    ),
    (
        ValueError,
        lambda p: p._replace(W_h=p.b_h),
        "params.W_h must have shape [D, H] with D and H at least 1; got float32 [64].",
    ),
    (
        ValueError,
        lambda p: p._replace(W_h=None),
        "params.W_h must have shape [D, H] with D and H at least 1; got None.",
    ),
    (
        ValueError,
        lambda p: p._replace(W_h=jnp.zeros((32, 0))),
        "params.W_h must have shape [D, H] with D and H at least 1; got float32 [32, 0].",
    ),
    (TypeError, lambda p: p._replace(b_f=0.0), "params.b_f must be an array; got 0.0."),
    (
        TypeError,
        lambda p: p._replace(b_f=p.b_f.astype(jnp.bfloat16)),
        "params.b_f must be float32 (the dtype of params.W_h); got bfloat16 [64].",
    ),
    (
        TypeError,
        lambda p: jax.tree.map(lambda a: a.astype(int), p),
        "params.W_h must be of a floating dtype; got int32 [32, 64].",
    ),
    (
        TypeError,
        lambda p: jax.tree.map(lambda a: a.astype(jnp.complex64), p),
        "params.W_h must be of a floating dtype; got complex64 [32, 64].",
    ),
]


@pytest.mark.parametrize(("kind", "spoil", "text"), PARAMS, ids=[text[:50] for *_, text in PARAMS])
def test_params(params, kind, spoil, text):
    assert raised(kind, lambda: mgu.scan(spoil(params), XS)) == text
    assert raised(kind, lambda: mgu.step(spoil(params), H0, XS[0])) == text


def test_numpy_float64_counts_as_what_jax_makes_of_it(params):
    hs, _ = mgu.scan(params, np.zeros((5, 32)))
    assert hs.dtype == jnp.float32
    with jax.enable_x64(True):
        text = raised(TypeError, lambda: mgu.scan(params, np.zeros((5, 32))))
    assert text == "xs must be float32 (the dtype of params); got float64 [5, 32]."


INIT = [
    (ValueError, {"hidden_size": 0}, "hidden_size must be a whole number of at least 1; got 0."),
    (ValueError, {"hidden_size": 2.0}, "hidden_size must be a whole number of at least 1; got 2.0."),
    (ValueError, {"input_size": -1}, "input_size must be a whole number of at least 1; got -1."),
    (ValueError, {"input_size": True}, "input_size must be a whole number of at least 1; got True."),
    (TypeError, {"key": 0}, "key must be one PRNG key, as jax.random.key(0) makes it; got 0."),
    (
        TypeError,
        {"key": jax.random.split(KEY)},
        "key must be one PRNG key, as jax.random.key(0) makes it; got key<fry> [2].",
    ),
    (TypeError, {"dtype": "foo"}, "dtype must be a dtype; got 'foo'."),
    (ValueError, {"forget_bias": "x"}, "forget_bias must be a number or [64]; got 'x'."),
    (ValueError, {"forget_bias": 1j}, "forget_bias must be a number or [64]; got a complex."),
    (
        TypeError,
        {"key": jnp.zeros(3, jnp.uint32)},
        "key must be one PRNG key, as jax.random.key(0) makes it; got uint32 [3].",
    ),
    (TypeError, {"key": jnp.zeros(2)}, "key must be one PRNG key, as jax.random.key(0) makes it; got float32 [2]."),
    (
        ValueError,
        {"initializer": "he"},
        "initializer must be one of 'orthogonal', 'lecun', 'glorot', 'uniform', 'identity', "
        "'notebook', 'notebook_normal'; got 'he'.",
    ),
    (ValueError, {"forget_bias": np.zeros(3)}, "forget_bias must be a number or [64]; got float64 [3]."),
    (
        ValueError,
        {"forget_bias": mgu.chrono(10), "cell": mgu.MGU2},
        "forget_bias can be chrono only for a gate with a bias; got gate='h'.",
    ),
    (TypeError, {"dtype": jnp.int32}, "dtype must be float32, float64, bfloat16 or float16; got int32."),
    (TypeError, {"cell": None}, "cell must be an mgu_jax.Cell, such as mgu_jax.MGU; got None."),
]


@pytest.mark.parametrize(("kind", "wrong", "text"), INIT, ids=[text[:50] for *_, text in INIT])
def test_init(kind, wrong, text):
    arguments = {"key": KEY, "input_size": 32, "hidden_size": 64} | wrong
    assert raised(kind, lambda: mgu.init(**arguments)) == text


STEP = [
    (ValueError, (H0, XS[0, :, :16]), "x must have shape [..., 32] (params.W_h is [32, 64]); got [8, 16]."),
    (ValueError, (H0[:, :32], XS[0]), "h must have shape [..., 64] (params.b_h is [64]); got [8, 32]."),
    (ValueError, (H0[:4], XS[0]), "h must have shape [8, 64] (the batch of x and the width of params); got [4, 64]."),
    (TypeError, (None, XS[0]), "h must be an array; got None."),
]


@pytest.mark.parametrize(("kind", "arguments", "text"), STEP, ids=[text[:50] for *_, text in STEP])
def test_step(params, kind, arguments, text):
    assert raised(kind, lambda: mgu.step(params, *arguments)) == text


def test_step_backward(params):
    _, residuals = mgu.step_forward(params, H0, XS[0])
    text = raised(ValueError, lambda: mgu.step_backward(params, residuals, H0[:4]))
    assert text == "dh_next must have shape [8, 64] (the shape of the state); got [4, 64]."
    text = raised(TypeError, lambda: mgu.step_backward(params, tuple(residuals), H0))
    assert text == "residuals must be a Residuals, as step_forward makes it; got a tuple."
    after = mgu.init(KEY, 32, 64, mgu.RESET_AFTER_MGU)
    f = residuals.gates._replace(f=H0[:1])  # which would be broadcast
    few = residuals._replace(x=XS[0, :4], h=H0[:4])
    for spoilt in (residuals._replace(gates=None), residuals._replace(gates=f), few):
        dh = H0[: len(spoilt.h)]
        text = raised(ValueError, lambda spoilt=spoilt, dh=dh: mgu.step_backward(params, spoilt, dh))
        assert text == "residuals must be those of step_forward for this cell and this batch; they are not."
    text = raised(ValueError, lambda: mgu.step_backward(after, residuals, H0, mgu.RESET_AFTER_MGU))
    assert text == "residuals must be those of step_forward for this cell and this batch; they are not."


CELL = [
    ({"reset": "never"}, "reset must be one of 'before', 'after', 'none'; got 'never'."),
    ({"gate": "hx"}, "gate must be one of 'xhb', 'xh', 'xb', 'hb', 'x', 'h', 'b'; got 'hx'."),
    ({"update": "z"}, "update must be one of 'f', '1-f'; got 'z'."),
    ({"activation": "gelu"}, "activation must be one of 'tanh', 'relu', 'identity'; got 'gelu'."),
    ({"recurrence": "sparse"}, "recurrence must be one of 'dense', 'diagonal'; got 'sparse'."),
    ({"candidate": "b"}, "candidate must be one of 'xhb', 'xb'; got 'b'."),
    ({"candidate": "xb"}, "reset must be 'none' for a candidate that does not see the state; got 'before'."),
]


@pytest.mark.parametrize(("wrong", "text"), CELL, ids=[text[:50] for *_, text in CELL])
def test_cell(wrong, text):
    assert raised(ValueError, lambda: mgu.Cell(**wrong)) == text


@pytest.mark.parametrize(
    "forward_mode",
    [
        lambda f, x: jax.jvp(f, (x,), (x,)),
        lambda f, x: jax.jvp(jax.jit(f), (x,), (x,)),
        lambda f, x: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(x),
        lambda f, x: jax.jacfwd(f)(x),
        lambda f, x: jax.linearize(f, x)[1](x),
    ],
    ids=["jvp", "jvp of jit", "jit of jvp", "jacfwd", "linearize"],
)
def test_forward_mode_points_to_autodiff(forward_mode):
    params, x = mgu.init(KEY, 2, 3), jnp.ones((4, 1, 2))
    assert raised(TypeError, lambda: forward_mode(lambda x: mgu.scan(params, x)[0], x)) == SENTENCE
    assert "implementation='autodiff'" in SENTENCE
    forward_mode(lambda x: mgu.scan(params, x, implementation="autodiff")[0], x)


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


def test_chrono_itself():
    assert raised(ValueError, lambda: mgu.chrono(2)) == "longest must be a whole number of at least 3; got 2."


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


@pytest.mark.parametrize("batched", [lambda f: jax.jit(jax.jacfwd(f)), lambda f: jax.jacfwd(jax.jit(f))])
def test_batched_forward_mode_under_jit_is_refused_too(batched):
    """In JAX's own words; see ``reverse_only``."""
    params, x = mgu.init(KEY, 2, 3), jnp.ones((4, 1, 2))
    with pytest.raises(TypeError, match="forward-mode"):
        batched(lambda x: mgu.scan(params, x)[0])(x)


def test_check_gradients_of_traced_arrays(params):
    text = raised(TypeError, lambda: jax.jit(lambda x: mgu.check_gradients(params, x).worst)(XS))
    assert text == "params, xs and h0 must be concrete arrays, since differences are taken; got traced ones."


def test_check_gradients(params):
    text = raised(ValueError, lambda: mgu.check_gradients(params, XS, directions=0))
    assert text == "directions must be a whole number of at least 1; got 0."
    text = raised(ValueError, lambda: mgu.check_gradients(params, XS[..., :16]))
    assert text == "xs must have shape [T, ..., 32] (params.W_h is [32, 64]); got [100, 8, 16]."


def test_what_names_no_file(params):
    for asked in (lambda: files.save(None, mgu.MGU, params), lambda: files.load(None), lambda: export.save(None, 0, 0)):
        assert raised(TypeError, asked) == "path must be a text or a path; got None."
    assert raised(TypeError, lambda: checkpoint.Checkpoints(None)) == "folder must be a text or a path; got None."
