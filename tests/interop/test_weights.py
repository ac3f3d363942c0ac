"""Weights of Flax, PyTorch and the notebook: round trips are exact, and a different function is rejected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.interop.convert import convert, from_dict, to_dict
from mgu_jax.interop.weights import (
    FLAX_NO_RESET,
    from_flax,
    from_notebook,
    from_torch,
    to_flax,
    to_notebook,
    to_torch,
)
from tests import laws, oracle
from tests.rejects import rejects

D, H, K = 4, 5, 3


def numbers(cell, dtype="float64"):
    return jax.tree.map(lambda a: np.asarray(a, dtype), laws.case(cell, D=D, H=H).params)


def states(cell, params):
    """The states of a cell by the NumPy oracle, which compiles nothing."""
    case = laws.case(mgu.MGU, D=D, H=H)
    return oracle.forward(cell, params, case.xs, case.h0)[0]


def identical(one, other):
    a, b = jax.tree.flatten(one), jax.tree.flatten(other)
    assert a[1] == b[1]
    for mine, right in zip(a[0], b[0], strict=True):
        assert mine.dtype == right.dtype
        assert mine.tobytes() == np.asarray(right).tobytes()


# (a member, a second one that can compute the same function)
SAME = [
    (mgu.MGU2, mgu.MGU1),
    (mgu.MGU3, mgu.MGU),
    (mgu.MGU1, mgu.MGU),
    (mgu.DIAGONAL_MGU, mgu.MGU),
    (mgu.DIAGONAL_MGU, mgu.RESET_AFTER_MGU),
    (mgu.UGRNN, FLAX_NO_RESET),
    (mgu.Cell(gate="h", reset="none"), mgu.Cell(reset="none", update="1-f")),
    (mgu.MIN_GRU, mgu.Cell(activation="identity", update="1-f")),
    (laws.OTHERS["norm bias"], mgu.Cell(layer_norm=True, activation="identity")),
    (laws.OTHERS["norm linear"], mgu.Cell(layer_norm=True, reset="after", update="1-f", beta=1.0)),
]


@pytest.mark.parametrize(("cell", "to"), SAME)
def test_converted_parameters_compute_the_same(cell, to):
    params = numbers(cell)
    np.testing.assert_allclose(states(to, convert(params, cell, to)), states(cell, params), rtol=0, atol=1e-13)


OTHER = [
    (mgu.MGU, mgu.DIAGONAL_MGU, "cannot mix the units"),
    (mgu.FLAX_MGU, mgu.RESET_AFTER_MGU, "exchange them in the reset"),
    (mgu.RESET_AFTER_MGU, mgu.MGU, "reset='after' and reset='before'"),
    (mgu.MGU, mgu.UGRNN, "reset='before' and reset='none'"),
    (mgu.MGU, mgu.MGU2, "its gate lacks b_f and W_f"),
    (mgu.UGRNN, mgu.MIN_GRU, "activations tanh and identity"),
    (mgu.UGRNN, mgu.Cell(gate="xhb", candidate="xb", reset="none"), "its candidate lacks U_h"),
    (mgu.UGRNN, mgu.JANET, "beta=0 and beta=1 compute"),
    (mgu.MGU, mgu.Cell(layer_norm=True), "layer normalisation"),
]


@pytest.mark.parametrize(("cell", "to", "why"), OTHER)
def test_a_different_function_is_rejected_with_the_reason(cell, to, why):
    rejects(lambda: convert(numbers(cell), cell, to), "to must", why, f"got {to}", ValueError)


def test_dictionaries():
    params = numbers(mgu.MGU1)
    assert to_dict(params).keys() == {"U_f", "b_f", "W_h", "U_h", "b_h"}
    identical(from_dict(to_dict(params)), params)
    rejects(lambda: from_dict({"W_i": 1}), "a name", "'W_f'", "'W_i'", ValueError)
    rejects(lambda: from_dict(None), "arrays", "a mapping", "None", TypeError)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("cell", [mgu.FLAX_MGU, mgu.UGRNN, FLAX_NO_RESET])
def test_flax_there_and_back(cell, dtype):
    params = numbers(cell, dtype)
    variables = to_flax(params, cell)
    back, kind = from_flax(variables, cell)
    assert kind == cell
    identical(back, params)
    identical(to_flax(*from_flax(variables)), variables)  # with the default member


@pytest.mark.parametrize("reset_gate", [True, False])
def test_converted_weights_of_flax_compute_the_same(x64, reset_gate):
    nn = pytest.importorskip("flax.linen")
    cell = nn.MGUCell(H, reset_gate=reset_gate, param_dtype=jnp.float64)
    case = laws.case(mgu.MGU, D=D, H=H)
    with jax.numpy_rank_promotion("allow"):
        variables = cell.init(jax.random.key(0), case.h0, case.xs[0])
        wanted, _ = cell.apply(variables, case.h0, case.xs[0])
    params, member = from_flax(variables)
    assert member == (mgu.FLAX_MGU if reset_gate else mgu.UGRNN)
    np.testing.assert_allclose(mgu.step(params, case.h0, case.xs[0], member), wanted, rtol=0, atol=1e-13)


TORCH = {"MGU": mgu.MGU, "RESET_AFTER_MGU": mgu.RESET_AFTER_MGU, "UGRNN": mgu.UGRNN, "FLAX_MGU": mgu.FLAX_MGU}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", TORCH.values(), ids=TORCH)
def test_torch_there_and_back(cell, dtype):
    params = numbers(cell, dtype)
    state = to_torch(params, cell, prefix="rnn.", suffix="_l0")
    assert state["rnn.weight_ih_l0"].shape == (2 * H, D)
    assert state["rnn.weight_hh_l0"].shape == (2 * H, H)
    identical(from_torch(state | {"head.weight": object()}, cell, prefix="rnn.", suffix="_l0"), params)


@pytest.mark.parametrize("cell", TORCH.values(), ids=TORCH)
def test_torch_with_two_biases_computes_its_own_equations(cell):
    """The equations of such a module: rows of weights, the gate above the candidate, a bias for each product."""
    rng = np.random.default_rng(3)
    state = {
        "weight_ih": rng.normal(size=(2 * H, D)),
        "weight_hh": rng.normal(size=(2 * H, H)),
        "bias_ih": rng.normal(size=2 * H),
        "bias_hh": rng.normal(size=2 * H),
    }
    case = laws.case(cell, T=1, D=D, H=H)
    x, h = case.xs[0], case.h0
    a_f, a_c = np.split(x @ state["weight_ih"].T + state["bias_ih"], 2, -1)
    U_f, U_c = np.split(state["weight_hh"], 2)
    b_f, b_c = np.split(state["bias_hh"], 2)
    f = 1 / (1 + np.exp(-(a_f + h @ U_f.T + b_f)))
    inside = {"before": (f * h) @ U_c.T + b_c, "after": f * (h @ U_c.T + b_c), "none": h @ U_c.T + b_c}[cell.reset]
    c, u = np.tanh(a_c + inside), f if cell.update == "f" else 1 - f
    got = oracle.forward(cell, from_torch(state, cell), case.xs, h)[0][0]
    np.testing.assert_allclose(got, (1 - u) * h + u * c, rtol=0, atol=1e-13)
    assert not from_torch({k: state[k] for k in ("weight_ih", "weight_hh")}, cell).b_h.any()


def test_the_round_trip_of_a_torch_module():
    torch = pytest.importorskip("torch")
    module = torch.nn.Module()
    for name, shape in (("weight_ih", (2 * H, D)), ("weight_hh", (2 * H, H)), ("bias", (2 * H,))):
        module.register_parameter(name, torch.nn.Parameter(torch.randn(shape)))
    params = from_torch(module.state_dict())
    back = {name: torch.from_numpy(a) for name, a in to_torch(params).items()}
    module.load_state_dict(back)
    with torch.no_grad():
        module.bias.zero_()
    assert params.b_f.any(), "params must be a copy, not a view of torch's memory"
    assert torch.equal(torch.from_numpy(params.W_f.T), module.weight_ih[:H])


@pytest.mark.parametrize("name", ["MGU", "RESET_AFTER_MGU", "FLAX_MGU"])
def test_the_round_trip_of_a_torch_module_with_two_biases(name):
    torch = pytest.importorskip("torch")
    cell = getattr(mgu, name)
    module = torch.nn.Module()
    for entry, shape in {"weight_ih": (2 * H, D), "weight_hh": (2 * H, H), "bias_ih": 2 * H, "bias_hh": 2 * H}.items():
        module.register_parameter(entry, torch.nn.Parameter(torch.randn(shape)))
    params = from_torch(module.state_dict(), cell)
    state = to_torch(params, cell, two_biases=True)
    module.load_state_dict({entry: torch.from_numpy(a) for entry, a in state.items()})
    identical(from_torch(module.state_dict(), cell), params)


def test_tensors_of_bfloat16_are_copied_bit_for_bit():
    torch = pytest.importorskip("torch")
    state = {"weight_ih": torch.randn(2 * H, D).bfloat16(), "weight_hh": torch.randn(2 * H, H).bfloat16()}
    state["weight_ih"].requires_grad_()
    params = from_torch(state)
    assert params.W_f.dtype == params.b_f.dtype == jnp.bfloat16
    bits = state["weight_ih"].detach().view(torch.int16).numpy()
    assert np.array_equal(to_torch(params)["weight_ih"].view(np.int16), bits)


def test_the_notebook_there_and_back():
    rng = np.random.default_rng(0)
    shapes = [(H, D), (H, H), (H, D), (H, H), (K, H), (H, 1), (H, 1), (K, 1)]
    theirs = [rng.normal(size=shape) for shape in shapes]
    params = from_notebook(theirs)
    identical(to_notebook(params), theirs)
    W_f, U_f, W_h, U_h, W_y, b_f, b_h, b_y = theirs
    x, h = rng.normal(size=(D, 1)), rng.normal(size=(H, 1))
    f = 1 / (1 + np.exp(-(W_f @ x + U_f @ h + b_f)))
    new = (1 - f) * h + f * np.tanh(W_h @ x + U_h @ (f * h) + b_h)
    hs, _, _ = oracle.forward(mgu.MGU, params.layers[0], x.T[None], h.T)
    np.testing.assert_allclose(hs[0].T, new, rtol=0, atol=1e-13)
    np.testing.assert_allclose(hs[0] @ params.W_y + params.b_y, (W_y @ new + b_y).T, rtol=0, atol=1e-13)


def one_layer():
    params = numbers(mgu.MGU, "float32")
    return mgu.ModelParams((params,), np.ones((H, K), "float32"), np.ones(K, "float32"))


GATE = {"kernel": np.ones((D, H)), "bias": np.ones(H)}
FLAX = {"if": GATE, "in": GATE, "hf": {"kernel": np.ones((H, H))}, "hn": {"kernel": np.ones((H, H))}}
STATE = {"weight_ih": np.ones((2 * H, D)), "weight_hh": np.ones((2 * H, H))}
WRONG = [
    (lambda: from_flax({"params": {"in": GATE}}), "variables", "if, hf, in, hn", "['in']"),
    (lambda: from_flax(FLAX | {"if": {"kernel": 1}}), "variables['if']", "kernel and bias", "['kernel']"),
    (lambda: to_flax(numbers(mgu.MGU), mgu.MGU), "cell", "same function as flax.linen.MGUCell", f"{mgu.MGU}: reset="),
    (lambda: from_flax(FLAX, mgu.MGU), "cell", "same function as flax.linen.MGUCell", f"{mgu.MGU}: reset="),
    (lambda: from_torch({"weight_ih": 1}), "state", "weight_ih and weight_hh", "['weight_ih']"),
    (lambda: from_torch(STATE | {"weight_hh": np.ones((3 * H, H))}), "state['weight_hh']", "[2H, H]", "[15, 5]"),
    (lambda: from_torch(STATE | {"weight_ih": np.ones((3 * H, D))}), "state['weight_ih']", "[10, D]", "[15, 4]"),
    (lambda: from_torch(STATE | {"bias": np.ones(H)}), "state['bias']", "[10]", "[5]"),
    (
        lambda: from_torch(STATE | {"bias": np.ones(2 * H), "bias_hh": np.ones(2 * H)}),
        "state",
        "'bias', or 'bias_ih' and 'bias_hh', or no bias",
        "'bias' and 'bias_hh'",
    ),
    (lambda: from_torch(STATE, mgu.MGU2), "cell", "W_f, b_f, dense U_f and U_h", str(mgu.MGU2)),
    (lambda: from_notebook([1, 2]), "arrays", "W_f, U_f, W_h, U_h, W_y, b_f, b_h, b_y", "2 entries"),
    (lambda: from_notebook([np.ones((2, 2))] * 8), "b_f", "[..., 1]", "[2, 2]"),
    (lambda: to_notebook(one_layer()._replace(embedding=np.ones(2))), "params", "one layer", "layers=1, embedding"),
]


@pytest.mark.parametrize(("call", "name", "rule", "got"), WRONG)
def test_wrong_weights_are_rejected(call, name, rule, got):
    rejects(call, name, rule, f"got {got}", ValueError)


def test_a_tensor_that_numpy_cannot_convert_is_rejected():
    class Elsewhere:
        def __array__(self, *_, **__):
            raise RuntimeError("it lies on another device.")

    state = STATE | {"weight_ih": Elsewhere()}
    got = "a Elsewhere (it lies on another device)"
    rejects(lambda: from_torch(state), "state['weight_ih']", "np.asarray", got, TypeError)
