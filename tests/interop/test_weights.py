"""Weights in and out: Flax's, PyTorch's, the notebook's, and files. Round trips are exact, other functions refused."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from mgu_jax.interop import files
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

D, H, K = 4, 5, 3


def numbers(cell, dtype="float64"):
    return jax.tree.map(lambda a: np.asarray(a, dtype), laws.case(cell, D=D, H=H).params)


def states(cell, params):
    """By the oracle in NumPy, so that nothing is compiled."""
    case = laws.case(mgu.MGU, D=D, H=H)
    return oracle.forward(cell, params, case.xs, case.h0)[0]


def identical(one, other):
    a, b = jax.tree.flatten(one), jax.tree.flatten(other)
    assert a[1] == b[1]
    for mine, right in zip(a[0], b[0], strict=True):
        assert mine.dtype == right.dtype
        assert mine.tobytes() == np.asarray(right).tobytes()


# (a member, a richer one that can compute the same)
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
    (laws.OTHERS["norm linear"], mgu.Cell(layer_norm=True, reset="after", update="1-f")),
]


@pytest.mark.parametrize(("cell", "to"), SAME)
def test_what_is_converted_computes_the_same(cell, to):
    params = numbers(cell)
    np.testing.assert_allclose(states(to, convert(params, cell, to)), states(cell, params), rtol=0, atol=1e-13)


OTHER = [
    (mgu.MGU, mgu.DIAGONAL_MGU, "a dense U mixes the units, and a diagonal one cannot."),
    (mgu.FLAX_MGU, mgu.RESET_AFTER_MGU, "its update takes 1 - f for f, and f is also in the reset, where it stays."),
    (mgu.RESET_AFTER_MGU, mgu.MGU, "a reset 'after' is another function than 'before'."),
    (mgu.MGU, mgu.UGRNN, "a reset 'before' is another function than 'none'."),
    (mgu.MGU, mgu.MGU2, "its gate has no place for b_f and W_f."),
    (mgu.UGRNN, mgu.MIN_GRU, "tanh is another function than identity."),
    (mgu.UGRNN, mgu.Cell(gate="xhb", candidate="xb", reset="none"), "its candidate has no place for U_h."),
    (mgu.MGU, mgu.Cell(layer_norm=True), "layer normalisation is another function than none."),
]


@pytest.mark.parametrize(("cell", "to", "why"), OTHER)
def test_another_function_is_refused_with_the_reason(cell, to, why):
    with pytest.raises(ValueError, match=r"^to must be a member .*: " + re.escape(why) + "$"):
        convert(numbers(cell), cell, to)


def test_dictionaries():
    params = numbers(mgu.MGU1)
    assert to_dict(params).keys() == {"U_f", "b_f", "W_h", "U_h", "b_h"}
    identical(from_dict(to_dict(params)), params)
    with pytest.raises(ValueError, match=r"^a name must be one of 'W_f', .*; got 'W_i'\.$"):
        from_dict({"W_i": 1})


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("cell", [mgu.FLAX_MGU, mgu.UGRNN, FLAX_NO_RESET])
def test_flax_there_and_back(cell, dtype):
    params = numbers(cell, dtype)
    variables = to_flax(params, cell)
    back, kind = from_flax(variables, cell)
    assert kind == cell
    identical(back, params)
    identical(to_flax(*from_flax(variables)), variables)  # by the member that is chosen for them


@pytest.mark.parametrize("reset_gate", [True, False])
def test_flax_computes_what_we_compute(x64, reset_gate):
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
    """Written as torch's users write it: rows of weights, gate above candidate, a bias for each product."""
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


def test_a_module_of_torch():
    torch = pytest.importorskip("torch")
    module = torch.nn.Module()
    for name, shape in (("weight_ih", (2 * H, D)), ("weight_hh", (2 * H, H)), ("bias", (2 * H,))):
        module.register_parameter(name, torch.nn.Parameter(torch.randn(shape)))
    params = from_torch(module.state_dict())
    back = {name: torch.from_numpy(a) for name, a in to_torch(params).items()}
    module.load_state_dict(back)
    with torch.no_grad():
        module.bias.zero_()
    assert params.b_f.any(), "a copy, not a view of torch's memory"
    assert torch.equal(torch.from_numpy(params.W_f.T), module.weight_ih[:H])


@pytest.mark.parametrize("name", ["MGU", "RESET_AFTER_MGU", "FLAX_MGU"])
def test_a_module_of_torch_with_two_biases_takes_them_back(name):
    torch = pytest.importorskip("torch")
    cell = getattr(mgu, name)
    module = torch.nn.Module()
    for entry, shape in {"weight_ih": (2 * H, D), "weight_hh": (2 * H, H), "bias_ih": 2 * H, "bias_hh": 2 * H}.items():
        module.register_parameter(entry, torch.nn.Parameter(torch.randn(shape)))
    params = from_torch(module.state_dict(), cell)
    state = to_torch(params, cell, two_biases=True)
    module.load_state_dict({entry: torch.from_numpy(a) for entry, a in state.items()})
    identical(from_torch(module.state_dict(), cell), params)


def test_tensors_of_bfloat16_come_bit_by_bit():
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
FLAX_FUNCTION = "cell must be a member with the function of flax.linen.MGUCell; got"
WRONG = [
    (
        lambda: from_flax({"params": {"in": GATE}}),
        "variables must hold if, hf, in, hn, as flax.linen.MGUCell makes them; got ['in'].",
    ),
    (lambda: from_flax(FLAX | {"if": {"kernel": 1}}), "variables['if'] must hold kernel and bias; got ['kernel']."),
    (
        lambda: to_flax(numbers(mgu.MGU), mgu.MGU),
        f"{FLAX_FUNCTION} {mgu.MGU}: a reset 'before' is another function than 'after'.",
    ),
    (
        lambda: from_flax(FLAX, mgu.MGU),
        f"{FLAX_FUNCTION} {mgu.MGU}: a reset 'none' is another function than 'before'.",
    ),
    (lambda: from_torch({"weight_ih": 1}), "state must hold weight_ih and weight_hh; got ['weight_ih']."),
    (
        lambda: from_torch(STATE | {"weight_hh": np.ones((3 * H, H))}),
        "state['weight_hh'] must have shape [2H, H]; got [15, 5].",
    ),
    (
        lambda: from_torch(STATE | {"weight_ih": np.ones((3 * H, D))}),
        "state['weight_ih'] must have shape [10, D] (weight_hh is [10, 5]); got [15, 4].",
    ),
    (lambda: from_torch(STATE | {"bias": np.ones(H)}), "state['bias'] must have shape [10]; got [5]."),
    (
        lambda: from_torch(STATE | {"bias": np.ones(2 * H), "bias_hh": np.ones(2 * H)}),
        "state must hold 'bias', or 'bias_ih' and 'bias_hh', or no bias; got 'bias' and 'bias_hh'.",
    ),
    (
        lambda: from_torch(STATE, mgu.MGU2),
        "cell must be one with W_f, U_f, b_f, dense U_f and U_h and no layer normalisation, which is what the stacks "
        f"hold (mgu_jax.interop.convert makes it of others); got {mgu.MGU2}.",
    ),
    (
        lambda: from_notebook([1, 2]),
        "arrays must be the list W_f, U_f, W_h, U_h, W_y, b_f, b_h, b_y; got 2 entries.",
    ),
    (
        lambda: from_notebook([np.ones((2, 2))] * 8),
        "b_f must have [.., 1], as in the notebook; got [2, 2].",
    ),
    (
        lambda: to_notebook(one_layer()._replace(embedding=np.ones(2))),
        "params must be of one layer and a readout; got 1 and embedding.",
    ),
]


@pytest.mark.parametrize(("function", "text"), WRONG, ids=[text[:40] for _, text in WRONG])
def test_wrong_weights_get_one_sentence(function, text):
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        function()


def test_a_tensor_that_numpy_does_not_take_gets_one_sentence():
    class Elsewhere:
        def __array__(self, *_, **__):
            raise RuntimeError("it lies on another device.")

    text = "state['weight_ih'] must be what np.asarray takes; got a Elsewhere (it lies on another device)."
    with pytest.raises(TypeError, match="^" + re.escape(text) + "$"):
        from_torch(STATE | {"weight_ih": Elsewhere()})


MODELS = {
    "plain": mgu.Model(D, (H,), K),
    "much": mgu.Model(9, (H, H), K, mgu.MGU1, embedding_size=D, bidirectional="sum", learned_h0=True, residual=True,
                      readout="last", dropout=0.25, zoneout=0.1, save="states", segment=3, compute_dtype=jnp.bfloat16,
                      precision=jax.lax.Precision.HIGHEST),
    "half": mgu.Model(D, (H,), K, mgu.Cell(layer_norm=True), dtype=jnp.bfloat16, precision="high"),
}  # fmt: skip


def drawn(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_a_file(tmp_path, name, ending):
    if ending == ".safetensors":
        pytest.importorskip("safetensors")
    model, path = MODELS[name], tmp_path / f"model{ending}"
    params = drawn(model)
    files.save(path, model, params)
    same, again = files.load(path)
    identical(again, params)
    ours, theirs = (m.init.__self__ for m in (model, same))
    assert type(ours)(**(vars(theirs) | {"precision": ours.precision})) == ours
    assert str(theirs.precision).lower() in str(ours.precision).lower()


def test_a_layer_in_a_file(tmp_path):
    params = jax.tree.map(jnp.asarray, numbers(mgu.MIN_GRU, "float16"))
    files.save(tmp_path / "layer.npz", mgu.MIN_GRU, params)
    cell, again = files.load(tmp_path / "layer.npz")
    assert cell == mgu.MIN_GRU
    identical(again, params)


def test_a_file_in_a_fresh_process(tmp_path):
    model, path = MODELS["plain"], str(tmp_path / "model.npz")
    params = drawn(model)
    files.save(path, model, params)
    code = f"from mgu_jax.interop import files; m, p = files.load({path!r}); print(float(p.W_y[0, 0]), m.apply)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{float(params.W_y[0, 0])} <bound method Stack.apply")


def test_files_that_save_did_not_write(tmp_path):
    path = tmp_path / "model.npz"
    model = MODELS["plain"]
    files.save(path, model, drawn(model))
    with np.load(path) as held:
        whole = dict(held)

    def load():
        return files.load(path)

    for change, text in [
        ({"W_y": whole["W_y"][:2]}, "must hold W_y [5, 3], by the specification; got [2, 3]."),
        ({"W_z": whole["W_y"]}, "must hold no W_z, by the specification; got [5, 3]."),
        (
            {"mgu_jax": np.array(json.dumps({"format": 2}))},
            "(ValueError: it is of format 2, and this version reads 1).",
        ),
        ({"mgu_jax": np.array("not JSON")}, "(JSONDecodeError: Expecting value: line 1 column 1 (char 0))."),
        ({"W_y": whole["W_y"].astype("float64")}, "must have one dtype; got float32, float64."),
    ]:
        np.savez(path, **(whole | change))
        with pytest.raises((ValueError, TypeError), match=re.escape(text) + "$"):
            load()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(
        ValueError, match=r"^path must be a file that mgu_jax\.interop\.files\.save wrote; got .*npz \("
    ):
        load()
    with pytest.raises(FileNotFoundError):
        files.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"^the ending of path must be one of '\.safetensors', '\.npz'; got '\.pt'\.$"):
        files.load("model.pt")


def test_a_bit_that_flipped_and_a_foreign_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "model.safetensors"
    files.save(path, MODELS["plain"], drawn(MODELS["plain"]))
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 8
    path.write_bytes(raw)
    with pytest.raises(
        ValueError, match=r"^path must be a file with the arrays that were saved; got .*another sha256\.$"
    ):
        files.load(path)
    safetensors.save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(ValueError, match=r"\(ValueError: it has no specification\)\.$"):
        files.load(path)
    np.savez(tmp_path / "model.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match=r"\(ValueError: it has no specification\)\.$"):
        files.load(tmp_path / "model.npz")


def test_what_cannot_be_saved(tmp_path):
    model = MODELS["plain"]
    with pytest.raises(TypeError, match=r"^model must be what mgu_jax\.model makes, or a Cell; got a dict\.$"):
        files.save(tmp_path / "x.npz", {}, drawn(model))
    with pytest.raises(ValueError, match=r"^params must hold no 0\.U_f, by the specification; got \[5, 5\]\.$"):
        files.save(tmp_path / "x.npz", model, drawn(model).layers)
    assert not list(tmp_path.iterdir())


def test_double_precision_needs_x64(tmp_path):
    with jax.enable_x64(True):
        files.save(tmp_path / "x.npz", mgu.MGU, numbers(mgu.MGU))
    with pytest.raises(TypeError, match=r"x\.npz holds float64, which needs jax\.config\.update"):
        files.load(tmp_path / "x.npz")
