"""Every wrong argument of a layer's functions gets one sentence: the argument, the rule, what came."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.layer.reverse_only import SENTENCE
from tests.rejects import rejects

KEY = jax.random.key(0)
XS, H0 = jnp.zeros((100, 8, 32)), jnp.zeros((8, 64))
A_KEY = "one PRNG key, as jax.random.key(0) makes it"
PRECISIONS = "one of None, 'default', 'high', 'highest'"
COMPUTE_DTYPES = "one of None, 'bfloat16', 'float16', 'float32', 'float64'"


@pytest.fixture(scope="module")
def params():
    return mgu.init(KEY, 32, 64)


# kind, the argument that is wrong, the rule, what came
SCAN = [
    (ValueError, {"xs": jnp.zeros((100, 8, 16))}, "[T, ..., 32] (params.W_h is [32, 64])", "[100, 8, 16]"),
    (ValueError, {"xs": jnp.zeros(32)}, "[T, ..., 32] (params.W_h is [32, 64])", "[32]"),
    (ValueError, {"xs": jnp.zeros(())}, "[T, ..., 32] (params.W_h is [32, 64])", "[]"),
    (TypeError, {"xs": [[0.0] * 32]}, "an array", "a list"),
    (TypeError, {"xs": None}, "an array", "None"),
    (TypeError, {"xs": 1.5}, "an array", "1.5"),
    (TypeError, {"xs": XS.astype(int)}, "float32 (the dtype of params)", "int32 [100, 8, 32]"),
    (TypeError, {"xs": XS.astype(jnp.complex64)}, "float32 (the dtype of params)", "complex64 [100, 8, 32]"),
    (TypeError, {"xs": XS.astype(jnp.bfloat16)}, "float32 (the dtype of params)", "bfloat16 [100, 8, 32]"),
    (TypeError, {"xs": KEY}, "float32 (the dtype of params)", "key<fry> []"),
    (ValueError, {"h0": jnp.zeros((8, 32))}, "[..., 64] (params.b_h is [64])", "[8, 32]"),
    (ValueError, {"h0": jnp.zeros((4, 64))}, "[8, 64] (the batch of xs and the width of params)", "[4, 64]"),
    (ValueError, {"h0": jnp.zeros(64)}, "[8, 64] (the batch of xs and the width of params)", "[64]"),
    (TypeError, {"h0": H0.astype(jnp.float16)}, "float32 (the dtype of params)", "float16 [8, 64]"),
    (TypeError, {"h0": [0.0] * 64}, "an array", "a list"),
    (ValueError, {"implementation": "fast"}, "one of None, 'manual', 'autodiff', 'parallel'", "'fast'"),
    (ValueError, {"implementation": "parallel"}, "at most 32 hidden units", "64"),
    (ValueError, {"precision": "exact"}, PRECISIONS, "'exact'"),
    (ValueError, {"precision": 3}, PRECISIONS, "3"),
    (TypeError, {"cell": "MGU"}, "an mgu_jax.Cell, such as mgu_jax.MGU", "'MGU'"),
    (ValueError, {"compute_dtype": jnp.int8}, COMPUTE_DTYPES, "'int8'"),
    (TypeError, {"compute_dtype": "half-ish"}, "a dtype", "'half-ish'"),
    (TypeError, {"lengths": [1] * 8}, "an array of whole numbers", "a list"),
    (TypeError, {"lengths": np.ones(8)}, "an array of whole numbers", "float64 [8]"),
    (ValueError, {"lengths": np.ones(4, int)}, "[8] (the batch of xs)", "[4]"),
    (ValueError, {"lengths": np.arange(8) * 20}, "[0, 100] (xs has 100 steps)", "120"),
    (ValueError, {"lengths": np.arange(8) - 3}, "[0, 100] (xs has 100 steps)", "-3"),
    (TypeError, {"resets": np.ones((100, 8))}, "an array of bool", "float64 [100, 8]"),
    (TypeError, {"resets": True}, "an array of bool", "True"),
    (ValueError, {"resets": np.ones(100, bool)}, "[100, 8] (the steps and the batch of xs)", "[100]"),
    (ValueError, {"reset_to": H0}, "resets", "float32 [8, 64]"),
    (ValueError, {"reset_to": H0[0], "resets": np.ones((100, 8), bool)}, "[8, 64] (the batch of xs", "[64]"),
    (ValueError, {"zoneout": 1.0}, "a number in [0, 1)", "1.0"),
    (ValueError, {"zoneout": "half"}, "a number in [0, 1)", "'half'"),
    (ValueError, {"recurrent_dropout": -0.1}, "a number in [0, 1)", "-0.1"),
    (ValueError, {"dropconnect": np.zeros(2)}, "a number in [0, 1)", "float64 [2]"),
    (ValueError, {"reverse": "no"}, "one of False, True", "'no'"),
    (ValueError, {"reverse": H0}, "one of False, True", "float32 [8, 64]"),
    (TypeError, {"key": 3}, A_KEY, "3"),
    (ValueError, {"save": "all"}, "one of 'gates', 'states', 'segments'", "'all'"),
    (ValueError, {"save": None}, "one of 'gates', 'states', 'segments'", "None"),
    (ValueError, {"save": "states", "implementation": "autodiff"}, "'manual'", "'states' and None"),
    (ValueError, {"segment": 0}, "a whole number of at least 1", "0"),
    (ValueError, {"segment": 2.5}, "a whole number of at least 1", "2.5"),
]


@pytest.mark.parametrize(("kind", "wrong", "rule", "got"), SCAN, ids=[f"{next(iter(w))} {g}" for _, w, _, g in SCAN])
def test_scan(params, kind, wrong, rule, got):
    arguments = {"params": params, "xs": XS, "h0": H0} | wrong
    rejects(lambda: mgu.scan(**arguments), next(iter(wrong)), rule, got, kind)


def test_errors_are_raised_under_jit_too(params):
    rejects(lambda: jax.jit(mgu.scan)(params, XS[..., :16]), "xs", "[T, ..., 32]", "[100, 8, 16]", ValueError)


W_H = "params.W_h"
PARAMS = [
    (TypeError, lambda p: tuple(p), "params", "an mgu_jax.Params, as mgu_jax.init makes it", "a tuple"),
    (ValueError, lambda p: p._replace(W_f=None), "params.W_f", "[32, 64] (the cell needs it)", "None"),
    (ValueError, lambda p: p._replace(b_r=p.b_h), "params.b_r", "None (the cell has no such term)", "float32 [64]"),
    (ValueError, lambda p: p._replace(U_f=p.W_f), "params.U_f", "[64, 64] (params.W_h is [32, 64])", "[32, 64]"),
    (ValueError, lambda p: p._replace(W_h=p.b_h), W_H, "[D, H] with D and H at least 1", "float32 [64]"),
    (ValueError, lambda p: p._replace(W_h=None), W_H, "[D, H] with D and H at least 1", "None"),
    (ValueError, lambda p: p._replace(W_h=jnp.zeros((32, 0))), W_H, "[D, H] with D and H at least 1", "[32, 0]"),
    (TypeError, lambda p: p._replace(b_f=0.0), "params.b_f", "an array", "0.0"),
    (
        TypeError,
        lambda p: p._replace(b_f=p.b_f.astype(jnp.bfloat16)),
        "params.b_f",
        "float32 (the dtype of params.W_h)",
        "bfloat16 [64]",
    ),
    (TypeError, lambda p: jax.tree.map(lambda a: a.astype(int), p), W_H, "floating", "int32 [32, 64]"),
    (TypeError, lambda p: jax.tree.map(lambda a: a.astype(jnp.complex64), p), W_H, "floating", "complex64 [32, 64]"),
]


@pytest.mark.parametrize(
    ("kind", "spoil", "name", "rule", "got"), PARAMS, ids=[f"{name} {got}" for _, _, name, _, got in PARAMS]
)
def test_params(params, kind, spoil, name, rule, got):
    rejects(lambda: mgu.scan(spoil(params), XS), name, rule, got, kind)
    rejects(lambda: mgu.step(spoil(params), H0, XS[0]), name, rule, got, kind)


def test_numpy_float64_has_the_dtype_that_jax_gives_it(params):
    hs, _ = mgu.scan(params, np.zeros((5, 32)))
    assert hs.dtype == jnp.float32
    with jax.enable_x64(True):
        rejects(lambda: mgu.scan(params, np.zeros((5, 32))), "xs", "float32 (the dtype of params)", "float64 [5, 32]")


INITIALIZERS = "one of 'orthogonal', 'lecun', 'glorot', 'uniform', 'identity', 'notebook', 'notebook_normal'"
INIT = [
    (ValueError, {"hidden_size": 0}, "a whole number of at least 1", "0"),
    (ValueError, {"hidden_size": 2.0}, "a whole number of at least 1", "2.0"),
    (ValueError, {"input_size": -1}, "a whole number of at least 1", "-1"),
    (ValueError, {"input_size": True}, "a whole number of at least 1", "True"),
    (TypeError, {"key": 0}, A_KEY, "0"),
    (TypeError, {"key": jax.random.split(KEY)}, A_KEY, "key<fry> [2]"),
    (TypeError, {"key": jnp.zeros(3, jnp.uint32)}, A_KEY, "uint32 [3]"),
    (TypeError, {"key": jnp.zeros(2)}, A_KEY, "float32 [2]"),
    (TypeError, {"dtype": "foo"}, "a dtype", "'foo'"),
    (TypeError, {"dtype": jnp.int32}, "float32, float64, bfloat16 or float16", "int32"),
    (ValueError, {"forget_bias": "x"}, "a number or [64]", "'x'"),
    (ValueError, {"forget_bias": 1j}, "a number or [64]", "a complex"),
    (ValueError, {"forget_bias": np.zeros(3)}, "a number or [64]", "float64 [3]"),
    (ValueError, {"forget_bias": mgu.chrono(10), "cell": mgu.MGU2}, "a gate with a bias", "gate='h'"),
    (ValueError, {"forget_bias": mgu.uniform_gate, "cell": mgu.MGU2}, "uniform_gate only for a gate with", "gate='h'"),
    (ValueError, {"initializer": "he"}, INITIALIZERS, "'he'"),
    (TypeError, {"cell": None}, "an mgu_jax.Cell, such as mgu_jax.MGU", "None"),
]


@pytest.mark.parametrize(("kind", "wrong", "rule", "got"), INIT, ids=[f"{next(iter(w))} {g}" for _, w, _, g in INIT])
def test_init(kind, wrong, rule, got):
    arguments = {"key": KEY, "input_size": 32, "hidden_size": 64} | wrong
    rejects(lambda: mgu.init(**arguments), next(iter(wrong)), rule, got, kind)


def test_chrono():
    rejects(lambda: mgu.chrono(2), "longest", "a whole number of at least 3", "2", ValueError)


@pytest.mark.parametrize(
    ("kind", "arguments", "name", "rule", "got"),
    [
        (ValueError, (H0, XS[0, :, :16]), "x", "[..., 32] (params.W_h is [32, 64])", "[8, 16]"),
        (ValueError, (H0[:, :32], XS[0]), "h", "[..., 64] (params.b_h is [64])", "[8, 32]"),
        (ValueError, (H0[:4], XS[0]), "h", "[8, 64] (the batch of x and the width of params)", "[4, 64]"),
        (TypeError, (None, XS[0]), "h", "an array", "None"),
    ],
)
def test_step(params, kind, arguments, name, rule, got):
    assert rejects(lambda: mgu.step(params, *arguments), name, rule, got, kind).startswith(f"{name} ")


@pytest.mark.parametrize(
    ("kind", "wrong", "name", "rule", "got"),
    [
        (TypeError, {"reset": True}, "reset", "an array of bool", "True"),
        (ValueError, {"reset": np.ones(7, bool)}, "reset", "[8] (the batch of x)", "[7]"),
        (ValueError, {"reset_to": H0}, "reset_to", "left out without reset", "float32 [8, 64]"),
        (ValueError, {"reset": np.ones(8, bool), "reset_to": H0[0]}, "reset_to", "[8, 64] (the batch of x", "[64]"),
    ],
)
def test_the_reset_of_a_step(params, kind, wrong, name, rule, got):
    assert rejects(lambda: mgu.step(params, H0, XS[0], **wrong), name, rule, got, kind).startswith(f"{name} ")


def test_step_backward(params):
    _, residuals = mgu.step_forward(params, H0, XS[0])
    wrong = H0[:4]
    rejects(lambda: mgu.step_backward(params, residuals, wrong), "dh_next", "[8, 64]", "[4, 64]", ValueError)
    rejects(lambda: mgu.step_backward(params, tuple(residuals), H0), "residuals", "a Residuals", "a tuple", TypeError)
    f = residuals.gates._replace(f=H0[:1])  # which would be broadcast
    few = residuals._replace(x=XS[0, :4], h=H0[:4])
    for spoilt in (residuals._replace(gates=None), residuals._replace(gates=f), few):
        dh_next = H0[: len(spoilt.h)]
        rejects(
            lambda r=spoilt, d=dh_next: mgu.step_backward(params, r, d), "residuals", "step_forward", "", ValueError
        )
    after = mgu.init(KEY, 32, 64, mgu.RESET_AFTER_MGU)
    rejects(
        lambda: mgu.step_backward(after, residuals, H0, mgu.RESET_AFTER_MGU),
        "residuals",
        "step_forward",
        "",
        ValueError,
    )


@pytest.mark.parametrize(
    ("wrong", "rule", "got"),
    [
        ({"reset": "never"}, "one of 'before', 'after', 'none'", "'never'"),
        ({"gate": "hx"}, "one of 'xhb', 'xh', 'xb', 'hb', 'x', 'h', 'b'", "'hx'"),
        ({"update": "z"}, "one of 'f', '1-f'", "'z'"),
        ({"activation": "gelu"}, "one of 'tanh', 'relu', 'identity'", "'gelu'"),
        ({"recurrence": "sparse"}, "one of 'dense', 'diagonal'", "'sparse'"),
        ({"candidate": "b"}, "one of 'xhb', 'xb'", "'b'"),
        ({"beta": float("nan")}, "a number from -3 to 3", "nan"),
        ({"beta": 3.1}, "a number from -3 to 3", "3.1"),
        ({"beta": True}, "a number from -3 to 3", "True"),
        ({"beta": "1"}, "a number from -3 to 3", "'1'"),
        ({"reset": "before", "candidate": "xb"}, "'none' for a candidate that does not see the state", "'before'"),
    ],
)
def test_cell(wrong, rule, got):
    rejects(lambda: mgu.Cell(**wrong), next(iter(wrong)), rule, got, ValueError)


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
    text = rejects(
        lambda: forward_mode(lambda x: mgu.scan(params, x)[0], x),
        "implementation 'manual'",
        "implementation='autodiff'",
        kind=TypeError,
    )
    assert text == SENTENCE
    forward_mode(lambda x: mgu.scan(params, x, implementation="autodiff")[0], x)


@pytest.mark.parametrize("batched", [lambda f: jax.jit(jax.jacfwd(f)), lambda f: jax.jacfwd(jax.jit(f))])
def test_batched_forward_mode_under_jit_is_rejected_too(batched):
    """In JAX's own words; ``reverse_only`` says why."""
    params, x = mgu.init(KEY, 2, 3), jnp.ones((4, 1, 2))
    with pytest.raises(TypeError, match="forward-mode"):
        batched(lambda x: mgu.scan(params, x)[0])(x)


def test_check_gradients(params):
    def traced(x):
        return mgu.check_gradients(params, x).worst

    rejects(lambda: jax.jit(traced)(XS), "xs", "concrete arrays", "traced", TypeError)
    wrong = XS[..., :16]
    rejects(lambda: mgu.check_gradients(params, XS, directions=0), "directions", "at least 1", "0", ValueError)
    rejects(lambda: mgu.check_gradients(params, wrong), "xs", "[T, ..., 32]", "[100, 8, 16]", ValueError)


def test_summary():
    params = mgu.Model(3, (4,), 2).init(KEY)
    rejects(lambda: mgu.summary(params.W_y), "params", "an mgu_jax.Params", "float32 [4, 2]", TypeError)
    incomplete = params.layers[0]._replace(W_h=None)
    rejects(lambda: mgu.summary(incomplete), "params.W_h", "an array", "None", TypeError)
    rejects(lambda: mgu.summary(params._replace(b_y="b")), "params.b_y", "an array", "'b'", TypeError)
    members = jax.tree.map(lambda a: a[None], params)
    rejects(lambda: mgu.summary(members), "params.W_h", "[D, H]", "[1, 3, 4]", ValueError)
