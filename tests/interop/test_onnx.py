"""A model exported to ONNX's standard operators, run by onnxruntime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgu_jax as mgu
from tests.interop.common import drawn, inputs
from tests.rejects import rejects

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
    "tied": mgu.Model(9, (H,), 9, embedding_size=H, tie=True),
    "tokens": mgu.Model(9, (H, H), K, embedding_size=D, residual=True, learned_h0=True, readout="last"),
}


def run(made, feeds):
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_computes_what_the_model_computes(name, lengths):
    model = MODELS[name]
    params, xs = drawn(model), inputs(model, T, B)
    given = {"xs": xs.astype(np.int64) if xs.dtype == np.int32 else xs}
    made = to_onnx(model, params, lengths=lengths is not None)
    got = run(made, given if lengths is None else given | {"lengths": lengths})
    assert got.keys() == {"ys"}
    wanted = jax.jit(lambda p, xs: model.apply(p, xs, lengths=lengths))(params, xs)
    np.testing.assert_allclose(got["ys"], wanted, rtol=0, atol=2e-5 if name == "relu" else 2e-6)
    assert {node.domain for node in made.graph.node} == {""}, "only standard operators"


@pytest.mark.parametrize("name", ["MGU", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sum", "tokens"))])
def test_one_file_serves_every_number_of_steps_and_samples_from_one(name):
    assert "for any T and B of at least 1" in to_onnx.__doc__
    model = MODELS[name]
    params = drawn(model)
    made = to_onnx(model, params)
    for steps, batch in ((1, 1), (1, 3), (9, 1)):
        xs = inputs(model, steps, batch)
        got = run(made, {"xs": xs.astype(np.int64) if xs.dtype == np.int32 else xs})["ys"]
        np.testing.assert_allclose(got, model.apply(params, xs), rtol=0, atol=2e-6)


def test_a_stream_carries_its_state():
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


CANNOT = [
    ({"cell": mgu.UGRNN}, "cell", "a reset", str(mgu.UGRNN)),
    ({"cell": mgu.Cell(beta=1.0)}, "cell", "beta=0", "Cell(beta=1.0)"),
    ({"dtype": jnp.bfloat16}, "the dtype of params", "'float32', 'float64'", "'bfloat16'"),
    ({"compute_dtype": jnp.bfloat16}, "compute_dtype", "None", "'bfloat16'"),
    ({"zoneout": 0.5}, "zoneout", "0", "0.5"),
]


@pytest.mark.parametrize(("options", "name", "rule", "got"), CANNOT, ids=[name for _, name, *_ in CANNOT])
def test_a_model_that_onnx_cannot_compute_is_rejected(options, name, rule, got):
    model = mgu.Model(D, (H,), K, **options)
    rejects(lambda: to_onnx(model, drawn(model)), name, rule, f"got {got}", ValueError)


def test_params_of_a_different_model_are_rejected():
    model = mgu.Model(D, (H,), K)
    for other, rule, got in [
        (mgu.Model(D + 1, (H,), K), "layers.0.W_f [4, 5]", "[5, 5]"),
        (mgu.Model(D, (H + 1,), K), "W_y [5, 3]", "[6, 3]"),
        (mgu.Model(D, (H, H), K), "no layers.1.U_f", "[5, 5]"),
    ]:
        rejects(lambda other=other: to_onnx(model, drawn(other)), "params", rule, got, ValueError)
    rejects(lambda: to_onnx({}, drawn(model)), "model", "an mgu_jax.Model", "a dict", TypeError)
