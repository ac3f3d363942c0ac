"""A trained model as an ONNX file, in operators of ONNX's own (extra ``onnx``).

    onnx.save(to_onnx(model, params), "tagger.onnx")

An MGU is ONNX's GRU with its gates tied: that one computes, with linear_before_reset 0 and 1,

    z = sigmoid(x W_z + h R_z + b_z)    r = sigmoid(x W_r + h R_r + b_r)
    c = tanh(x W_h + (r*h) R_h + b_h)   or   tanh(x W_h + r*(h R_h + b_R) + b_h)
    h' = (1 - z)*c + z*h

which is ours for r = f and z = 1 - f, so for the weights of f negated; and Flax's for z = f. The price is a third
product that an operator for MGUs would not need, and what it buys is every runtime's own fused loop.
"""

from typing import Any

import jax
import numpy as np

from mgu_jax import checks
from mgu_jax.extras import require
from mgu_jax.interop.convert import convert, full, named
from mgu_jax.interop.export import check_model
from mgu_jax.interop.files import check_like
from mgu_jax.layer.family import Cell
from mgu_jax.layer.params import Params
from mgu_jax.model import Model, ModelParams

onnx = require("onnx", "onnx")
OPSET = 17
_ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu"}


class _Graph:
    """Nodes and constants, as they come."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: Any, dtype: Any = None) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(np.asarray(array, dtype)), name))
        return name

    def __call__(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{operator}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def name(self, output: str, name: str) -> None:
        self.nodes.append(onnx.helper.make_node("Identity", [output], [name]))

    def axis(self, *axes: int) -> str:
        return self.constant(axes, np.int64)


def _check(model: Model, params: ModelParams) -> None:
    cell = model.cell
    if cell.reset == "none" or cell.layer_norm or cell.activation not in _ACTIVATIONS:
        raise ValueError(
            "cell must have a reset, tanh or relu, and no layer normalisation, since it has to be ONNX's GRU with tied "
            f"gates; got {cell}."
        )
    dtype = np.asarray(params.W_y).dtype.name
    checks.check_choice("the dtype of params", dtype, ("float32", "float64"))
    if model.compute_dtype not in (None, dtype):
        raise ValueError(f"compute_dtype must be None: ONNX's GRU has no mixed precision; got {model.compute_dtype!r}.")
    if zoneout := model.zoneout:
        raise ValueError(f"zoneout must be 0, since ONNX's GRU cannot take its expectation; got {zoneout}.")


def _gru(cell: Cell, directions: list[Params]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W [n, 3H, D], R [n, 3H, H] and B [n, 6H] of n directions; rows are z, r, h."""
    stacks = []
    for params in directions:
        p = Params(*(None if a is None else np.asarray(a) for a in convert(params, cell, full(cell))))
        sign = -1 if cell.update == "f" else 1
        zeros = np.zeros_like(p.b_h)
        W = np.concatenate([sign * p.W_f.T, p.W_f.T, p.W_h.T])
        R = np.concatenate([sign * p.U_f.T, p.U_f.T, p.U_h.T])
        inside = zeros if p.b_r is None else p.b_r
        stacks.append((W, R, np.concatenate([sign * p.b_f, p.b_f, p.b_h, zeros, zeros, inside])))
    W, R, B = map(np.stack, zip(*stacks, strict=True))
    return W, R, B


def to_onnx(model: Model, params: ModelParams, *, lengths: bool = False, state: bool = False) -> Any:
    """The model as an ``onnx.ModelProto``, for any T and B.

    Args:
        model: what ``mgu_jax.Model`` made, of a cell that resets (``MGU``, ``MGU1`` to ``MGU3``, ``RESET_AFTER_MGU``,
            ``FLAX_MGU``, ``DIAGONAL_MGU``), in any stack: embedding, directions, residuals, every readout.
        params: its parameters, of float32 (or float64, which few runtimes compute).
        lengths: with an input "lengths", int32 [B].
        state: with inputs "state_0" and so on, and outputs "last_0" and so on: for every layer [n, B, H] of its n
            directions. A stream is T = 1, where the last states are the next "state_0" and so on.

    Returns:
        a model of the input "xs" [T, B, D] (or tokens, int64 [T, B]), with the output "ys" as the readout gives it.

    Raises:
        ImportError: onnx is not installed.
        TypeError: no model, or no params of one.
        ValueError: params of another model, or a cell, a dtype or an option that ONNX's GRU cannot compute.
    """
    check_model(model, params)
    check_like("params", named(params), jax.eval_shape(lambda: model.init(jax.random.key(0))))
    _check(model, params)
    value, graph = onnx.helper.make_tensor_value_info, _Graph()
    dtype = np.asarray(params.W_y).dtype
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    if params.embedding is None:
        hs, inputs = "xs", [value("xs", kind, ["T", "B", model.input_size])]
    else:
        inputs = [value("xs", onnx.TensorProto.INT64, ["T", "B"])]
        hs = graph("Gather", graph.constant(params.embedding), "xs")
    if lengths:
        inputs.append(value("lengths", onnx.TensorProto.INT32, ["B"]))
    end, last = "", []
    for i, layer in enumerate(params.layers):
        directions = [layer] if params.backward is None else [layer, params.backward[i]]
        n, H = len(directions), model.hidden_sizes[i]
        start = f"state_{i}" if state else _start(graph, params, i, hs)
        new, new_end = graph(
            "GRU",
            hs,
            *map(graph.constant, _gru(model.cell, directions)),
            "lengths" if lengths else "",
            start,
            outputs=2,
            hidden_size=H,
            linear_before_reset=int(model.cell.reset == "after"),
            direction="bidirectional" if n == 2 else "forward",
            activations=["Sigmoid", _ACTIVATIONS[model.cell.activation]] * n,
        )
        if lengths and start:  # onnxruntime gives zeros where there is no step
            none = graph("Unsqueeze", graph("Equal", "lengths", graph.constant(0, np.int32)), graph.axis(0, 2))
            new_end = graph("Where", none, start, new_end)
        if state:
            inputs.append(value(start, kind, [n, "B", H]))
            last.append(value(f"last_{i}", kind, [n, "B", H]))
            graph.name(new_end, f"last_{i}")
        # [T, n, B, H] and [n, B, H], whose directions are summed, or put side by side.
        if model.bidirectional == "sum":
            new = graph("ReduceSum", new, graph.axis(1), keepdims=0)
            new_end = graph("ReduceSum", new_end, graph.axis(0), keepdims=0)
        else:
            new = graph("Reshape", graph("Transpose", new, perm=[0, 2, 1, 3]), graph.axis(0, 0, n * H))
            new_end = graph("Reshape", graph("Transpose", new_end, perm=[1, 0, 2]), graph.axis(0, n * H))
        if model.residual and i > 0 and model.hidden_sizes[i - 1] == H:
            new, new_end = graph("Add", new, hs), graph("Add", new_end, end)
        hs, end = new, new_end
    rows = {"all": hs, "last": end}.get(model.readout) or _mean(graph, hs, dtype, lengths)
    ys = graph("Add", graph("MatMul", rows, graph.constant(params.W_y)), graph.constant(params.b_y))
    graph.name(ys, "ys")
    shape = [*(["T"] if model.readout == "all" else []), "B", model.output_size]
    body = onnx.helper.make_graph(graph.nodes, "mgu_jax", inputs, [value("ys", kind, shape), *last], graph.constants)
    made = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", OPSET)], producer_name="mgu_jax")
    made.ir_version = 8  # of the opset's time; onnx would write its own newest, which runtimes may refuse
    onnx.checker.check_model(made, full_check=True)
    return made


def _start(graph: _Graph, params: ModelParams, i: int, hs: str) -> str:
    """The state before the first step, [n, B, H]; "" is zero."""
    if params.h0 is None:
        return ""
    first = [params.h0.layers[i]] + ([] if params.h0.backward is None else [params.h0.backward[i]])
    stacked = np.stack(list(map(np.asarray, first)))[:, None]
    batch = graph("Gather", graph("Shape", hs), graph.axis(1))
    shape = graph("Concat", graph.axis(len(first)), batch, graph.axis(stacked.shape[-1]), axis=0)
    return graph("Expand", graph.constant(stacked), shape)


def _mean(graph: _Graph, hs: str, dtype: Any, lengths: bool) -> str:
    """Over the valid steps of hs [T, B, H], at least 1; the others are zero."""
    summed = graph("ReduceSum", hs, graph.axis(0), keepdims=0)
    steps = "lengths" if lengths else graph("Gather", graph("Shape", hs), graph.axis(0))
    steps = graph("Cast", steps, to=onnx.helper.np_dtype_to_tensor_dtype(dtype))
    if lengths:
        steps = graph("Unsqueeze", graph("Max", steps, graph.constant(1, dtype)), graph.axis(1))
    return graph("Div", summed, steps)
