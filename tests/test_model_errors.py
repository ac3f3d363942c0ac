"""Every wrong argument of a model is rejected with one sentence: the argument, the rule and what came."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests.rejects import rejects

KEY = jax.random.key(0)
XS, H0 = jnp.zeros((100, 8, 32)), jnp.zeros((8, 64))

MODEL = [
    ({"hidden_sizes": ()}, "at least one width", "()"),
    ({"hidden_sizes": 64}, "at least one width", "64"),
    ({"hidden_sizes": (64, 0)}, "hidden_sizes[1] must be a whole number of at least 1", "0"),
    ({"output_size": 0}, "whole number of at least 1", "0"),
    ({"readout": "first"}, "'all', 'last', 'mean'", "'first'"),
    ({"bidirectional": True}, "None, 'concatenate', 'sum'", "True"),
    ({"dropout": 1}, "[0, 1)", "1"),
    ({"zoneout": -1}, "[0, 1)", "-1"),
    ({"embedding_size": 0}, "whole number of at least 1", "0"),
    ({"initializer": "he"}, "'orthogonal', 'lecun'", "'he'"),
    ({"implementation": "fast"}, "None, 'manual', 'autodiff', 'parallel'", "'fast'"),
    ({"residual": "none"}, "False, True", "'none'"),
    ({"learned_h0": "zeros"}, "False, True", "'zeros'"),
    ({"tie": True}, "an embedding as wide as the last layer's output", "embedding_size None and width 4"),
    ({"tie": "yes"}, "False, True", "'yes'"),
    ({"save": "some"}, "'gates', 'states', 'segments'", "'some'"),
]


TIED = {"input_size": 5, "hidden_sizes": (4,), "output_size": 5, "embedding_size": 4, "tie": True}


def test_a_tied_model():
    rejects(
        lambda: mgu.Model(**TIED | {"output_size": 3}), "tie", "output_size = input_size", "output_size 3", ValueError
    )
    both = {"bidirectional": "concatenate"}
    rejects(lambda: mgu.Model(**TIED | both), "tie", "as the last layer's output", "width 8", ValueError)
    model, apart = mgu.Model(**TIED), mgu.Model(**TIED | {"tie": False})
    xs = jnp.zeros((3, 2), int)
    rejects(lambda: model.apply(apart.init(KEY), xs), "params", "5 outputs", "W_y float32 [4, 5]", ValueError)
    rejects(lambda: apart.apply(model.init(KEY), xs), "params", "5 outputs", "W_y None", ValueError)


@pytest.mark.parametrize(("wrong", "rule", "got"), MODEL, ids=[str(wrong) for wrong, *_ in MODEL])
def test_model(wrong, rule, got):
    arguments = {"input_size": 3, "hidden_sizes": (4,), "output_size": 2} | wrong
    (name,) = wrong
    rejects(lambda: mgu.Model(**arguments), name, rule, f"got {got}", ValueError)


def test_a_traced_rate():
    make = jax.jit(lambda rate: mgu.Model(3, (4,), 2, dropout=rate).init(KEY))
    rejects(lambda: make(0.1), "dropout", "when the model is made", "float32 []", TypeError)


def test_init():
    model = mgu.Model(32, (64,), 3)
    rejects(lambda: model.init(0), "key", "one PRNG key", "got 0", TypeError)
    rejects(lambda: model.init(KEY, initial_scale="a"), "initial_scale", "a number", "'a'", TypeError)


APPLY = [
    (ValueError, {"training": True}, "key", "dropout and zoneout", "None"),
    (ValueError, {"training": "no", "key": KEY}, "training", "None, False, True", "'no'"),
    (ValueError, {"zoneout": jnp.float32(1.5)}, "zoneout", "[0, 1)", "1.5"),
    (ValueError, {"zoneout": np.float32(1.5)}, "zoneout", "[0, 1)", "1.5"),
    (TypeError, {"key": 0}, "key", "one PRNG key", "0"),
    (TypeError, {"state": XS}, "state", "an mgu_jax.State", "float32 [100, 8, 32]"),
    (ValueError, {"dropout": 1.5}, "dropout", "[0, 1)", "1.5"),
    (ValueError, {"drop_out": 0.5}, "a rate", "'dropout', 'recurrent_dropout', 'zoneout'", "'drop_out'"),
    (ValueError, {"lengths": np.arange(3)}, "lengths", "[8]", "[3]"),
    (ValueError, {"state": mgu.State((H0[:4],))}, "state.layers[0]", "[8, 64]", "[4, 64]"),
]


@pytest.mark.parametrize(("kind", "wrong", "name", "rule", "got"), APPLY, ids=[str(list(w)) for _, w, *_ in APPLY])
def test_apply(kind, wrong, name, rule, got):
    model = mgu.Model(32, (64,), 3, dropout=0.2, zoneout=0.1)
    params = model.init(KEY)
    rejects(lambda: model.apply(params, XS, **wrong), name, rule, f"got {got}", kind)


@pytest.mark.parametrize(
    ("bidirectional", "state", "rule", "got"),
    [
        (None, mgu.State((H0, H0)), "(1, 0)", "(2, 0)"),
        ("sum", mgu.State((H0,)), "(1, 1)", "(1, 0)"),
        (None, mgu.State((H0,), (H0,)), "(1, 0)", "(1, 1)"),
        (None, mgu.State(None), "(1, 0)", "(0, 0)"),
    ],
)
def test_the_state_of_a_different_model(bidirectional, state, rule, got):
    model = mgu.Model(32, (64,), 3, bidirectional=bidirectional)
    rejects(lambda: model.apply(model.init(KEY), XS, state=state), "state", rule, got, ValueError)


OTHERS = [
    ({}, {"bidirectional": "sum"}, "backward", "None", "(4,)"),
    ({"bidirectional": "sum"}, {}, "backward", "(4,)", "None"),
    ({}, {"learned_h0": True}, "h0", "None", "((4,),)"),
    ({"learned_h0": True}, {}, "h0", "((4,),)", "None"),
    ({"embedding_size": 3}, {}, "embedding", "(5, 3)", "None"),
    ({"embedding_size": 3}, {"embedding_size": 3, "input_size": 2}, "embedding", "(5, 3)", "(2, 3)"),
]


@pytest.mark.parametrize(("options", "others", "name", "rule", "got"), OTHERS)
def test_the_params_of_a_model_with_other_options(options, others, name, rule, got):
    """Without an error, a part that only one of the two has would be ignored or made up."""
    sizes = {"input_size": 5, "hidden_sizes": (4,), "output_size": 2}
    model, other = mgu.Model(**sizes | options), mgu.Model(**sizes | others)
    xs = jnp.zeros((3, 2), int) if "embedding_size" in options else jnp.zeros((3, 2, 5))
    rejects(lambda: model.apply(other.init(KEY), xs), f"params.{name}", rule, f"got {got}", ValueError)


def test_the_params_of_a_model_with_other_sizes():
    model, other = mgu.Model(32, (64,), 3), mgu.Model(32, (64, 32), 3)
    rejects(lambda: model.apply(mgu.init(KEY, 32, 64), XS), "params", "a ModelParams", "a Params", TypeError)
    got = "got (64, 32), W_y float32 [32, 3] and b_y float32 [3]"
    rejects(lambda: model.apply(other.init(KEY), XS), "params", "the hidden sizes (64,) and 3 outputs", got, ValueError)


@pytest.mark.parametrize(
    ("kind", "wrong", "rule", "got"),
    [
        (ValueError, {"b_y": jnp.ones(1)}, "3 outputs", "b_y float32 [1]"),
        (ValueError, {"b_y": None}, "3 outputs", "b_y None"),
        (ValueError, {"W_y": [1.0]}, "3 outputs", "W_y a list"),
        (ValueError, {"layers": None}, "hidden sizes (64,)", "got (None,)"),
        (TypeError, {"W_y": jnp.ones((64, 3), jnp.bfloat16)}, "params.W_y must be float32", "bfloat16 [64, 3]"),
        (TypeError, {"b_y": jnp.ones(3, jnp.complex64)}, "params.b_y must be float32", "complex64 [3]"),
    ],
)
def test_a_readout_that_does_not_fit(kind, wrong, rule, got):
    model = mgu.Model(32, (64,), 3)
    rejects(lambda: model.apply(model.init(KEY)._replace(**wrong), XS), "params", rule, got, kind)


def test_start():
    model = mgu.Model(32, (64,), 3)
    params = model.init(KEY)
    rejects(lambda: model.start(None), "params", "a ModelParams", "None", TypeError)
    rejects(lambda: model.start(params, 2), "batch", "a tuple of sizes", "2", TypeError)
    rejects(lambda: model.start(params, (3, -1)), "batch[1]", "at least 0", "-1", ValueError)


def test_tokens():
    model = mgu.Model(10, (4,), 3, embedding_size=2)
    params = model.init(KEY)
    rejects(lambda: model.apply(params, XS), "xs", "whole numbers [T, ...]", "float32 [100, 8, 32]", TypeError)
    lengths = np.ones(3, int)
    rejects(lambda: model.apply(params, np.ones((5, 2), int), lengths=lengths), "lengths", "[2]", "[3]", ValueError)


@pytest.mark.parametrize("token", [-1, 10])
def test_a_token_that_is_out_of_range(token):
    """JAX would read -1 as the last row of the embedding, and 10 as NaN."""
    model = mgu.Model(10, (4,), 3, embedding_size=2)
    params = model.init(KEY)
    xs = np.full((5, 2), 3)
    xs[4, 1] = token
    rejects(lambda: model.apply(params, xs), "xs", "[0, 10)", f"got {token}", ValueError)
    model.apply(params, xs, lengths=jnp.array([5, 4]))  # the padding may hold anything


def test_a_token_in_step():
    model = mgu.Model(10, (4,), 3, embedding_size=2)
    params = model.init(KEY)
    for x in (np.array([1, 10]), np.int64(10), 10):
        rejects(lambda x=x: model.step(params, x), "x", "[0, 10)", "got 10", ValueError)
    rejects(lambda: model.step(params, jnp.ones(2)), "x", "whole numbers [...]", "float32 [2]", TypeError)
    rejects(lambda: model.step(params, None), "x", "whole numbers [...]", "None", TypeError)
    np.testing.assert_array_equal(model.step(params, 3)[0], model.step(params, jnp.array(3))[0])


def test_step_names_its_input_x():
    model = mgu.Model(32, (64,), 3)
    params = model.init(KEY)
    assert rejects(lambda: model.step(params, None), "x", "an array", "None", TypeError).startswith("x ")
    rejects(lambda: model.step(params, jnp.zeros((2, 7))), "x", "[..., 32]", "[2, 7]", ValueError)


def test_the_reset_of_step():
    model = mgu.Model(32, (64,), 3)
    params = model.init(KEY)
    x = jnp.zeros((2, 32))
    rejects(lambda: model.step(params, x, reset=True), "reset", "an array of bool", "True", TypeError)
    rejects(lambda: model.step(params, x, reset=jnp.ones(3, bool)), "reset", "[2] (the batch of x)", "[3]", ValueError)


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ({"bidirectional": "sum"}, "bidirectional", "its reverse layers begin at the end"),
        ({"readout": "mean"}, "readout 'mean'", "it reads out the whole sequence"),
    ],
)
def test_a_model_that_cannot_be_stepped(options, name, reason):
    model = mgu.Model(32, (64,), 3, **options)
    rejects(lambda: model.step(model.init(KEY), XS[0]), name, f"cannot be stepped: {reason}", kind=ValueError)
