"""A model in ONNX's own operators, run by onnxruntime."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests.interop.test_export import drawn, inputs

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from mgu_jax.interop.onnx import to_onnx  # noqa: E402

D, H, K, T, B = 4, 5, 3, 6, 3
LENGTHS = np.array([6, 0, 4], np.int32)

MODELS = {
    "MGU": mgu.Model(D, (H,), K),
    "RESET_AFTER_MGU": mgu.Model(D, (H,), K, mgu.RESET_AFTER_MGU),
    "FLAX_MGU": mgu.Model(D, (H,), K, mgu.FLAX_MGU),
    "MGU2": mgu.Model(D, (H,), K, mgu.MGU2),
    "DIAGONAL_MGU": mgu.Model(D, (H,), K, mgu.DIAGONAL_MGU),
    "relu": mgu.Model(D, (H,), K, mgu.Cell(activation="relu", reset="after")),
    "side by side": mgu.Model(D, (H, H), K, bidirectional="concatenate", residual=True, readout="last"),
    "sum": mgu.Model(D, (H, 7), K, mgu.RESET_AFTER_MGU, bidirectional="sum", readout="mean", learned_h0=True),
    "tokens": mgu.Model(9, (H, H), K, embedding_size=D, residual=True, learned_h0=True, readout="last"),
}


def run(made, feeds):
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_computes_what_we_compute(name, lengths):
    model = MODELS[name]
    params, xs = drawn(model), inputs(model, T, B)
    given = {"xs": xs.astype(np.int64) if xs.dtype == np.int32 else xs}
    made = to_onnx(model, params, lengths=lengths is not None)
    got = run(made, given if lengths is None else given | {"lengths": lengths})
    assert got.keys() == {"ys"}
    wanted = jax.jit(lambda p, xs: model.apply(p, xs, lengths=lengths))(params, xs)
    np.testing.assert_allclose(got["ys"], wanted, rtol=0, atol=2e-5 if name == "relu" else 2e-6)
    assert {node.domain for node in made.graph.node} == {""}, "ONNX's own operators"


def test_a_stream_carries_its_states():
    model = mgu.Model(D, (H, 7), K)
    params, xs = drawn(model), inputs(model, T, B)
    session = onnxruntime.InferenceSession(to_onnx(model, params, state=True).SerializeToString())
    states, ys = [np.zeros((1, B, n), np.float32) for n in (H, 7)], []
    for t in range(T):
        y, *states = session.run(None, {"xs": xs[t : t + 1]} | {f"state_{i}": h for i, h in enumerate(states)})
        ys.append(y[0])
    wanted, last = model.apply(params, xs, return_state=True)
    np.testing.assert_allclose(np.stack(ys), wanted, rtol=0, atol=2e-6)
    for got, right in zip(states, last.layers, strict=True):
        np.testing.assert_allclose(got[0], right, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            mgu.Model(D, (H,), K, mgu.UGRNN),
            "cell must have a reset, tanh or relu, and no layer normalisation, since it has to be ONNX's GRU with tied "
            f"gates; got {mgu.UGRNN}.",
        ),
        (
            mgu.Model(D, (H,), K, dtype=jnp.bfloat16),
            "the dtype of params must be one of 'float32', 'float64'; got 'bfloat16'.",
        ),
        (
            mgu.Model(D, (H,), K, compute_dtype=jnp.bfloat16),
            "compute_dtype must be None, since ONNX's GRU has no such; got 'bfloat16'.",
        ),
        (
            mgu.Model(D, (H,), K, zoneout=0.5),
            "zoneout must be 0, since ONNX's GRU cannot take its expectation; got 0.5.",
        ),
    ],
)
def test_what_onnx_cannot_compute_is_refused(model, text):
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        to_onnx(model, drawn(model))


def test_params_of_another_model_are_refused():
    model = mgu.Model(D, (H,), K)
    for other, text in [
        (mgu.Model(D + 1, (H,), K), "params must hold layers.0.W_f [4, 5], by the specification; got [5, 5]."),
        (mgu.Model(D, (H + 1,), K), "params must hold W_y [5, 3], by the specification; got [6, 3]."),
        (mgu.Model(D, (H, H), K), "params must hold no layers.1.U_f, by the specification; got [5, 5]."),
    ]:
        with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
            to_onnx(model, drawn(other))
    own = model._replace(init=lambda key: None)
    with pytest.raises(TypeError, match=r"^model must be what mgu_jax\.model makes, or a Cell; got a Model\.$"):
        to_onnx(own, drawn(model))
