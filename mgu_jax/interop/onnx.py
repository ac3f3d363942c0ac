"""A trained model as an ONNX file that uses only ONNX's standard operators (extra ``onnx``).

    onnx.save(to_onnx(model, params), "tagger.onnx")

An MGU is ONNX's GRU with its gates tied. With linear_before_reset 0 or 1, that GRU computes

    z = sigmoid(x W_z + h R_z + b_z)    r = sigmoid(x W_r + h R_r + b_r)
    c = tanh(x W_h + (r*h) R_h + b_h)   or   tanh(x W_h + r*(h R_h + b_R) + b_h)
    h' = (1 - z)*c + z*h

which is the MGU for r = f and z = 1 - f: W_r = W_f, and W_z = -W_f because 1 - sigmoid(a) = sigmoid(-a). Flax's cell is
r = z = f. The price is a third product per step, which an operator for MGUs would not need; in return, every runtime
runs its own fused loop.
"""

from typing import Any

import jax
import numpy as np

from mgu_jax import checks
from mgu_jax.extras import require
from mgu_jax.interop._arguments import check_is_model
from mgu_jax.interop.convert import convert, full, named
from mgu_jax.interop.files import check_like
from mgu_jax.layer.family import Cell
from mgu_jax.layer.params import Params
from mgu_jax.model import Model, ModelParams, check_model_params

onnx = require("onnx", "onnx")
OPSET = 17
_ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu"}


class _Graph:
    """The nodes and constants of a graph that is being built; each method returns the name of what it adds."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: Any, dtype: Any = None) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(np.asarray(array, dtype)), name))
        return name

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """The name of the operator's output, or the names of its outputs if it has several."""
        names = [f"{operator}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def name(self, output: str, name: str) -> None:
        """Give an output of the model its public name."""
        self.nodes.append(onnx.helper.make_node("Identity", [output], [name]))

    def integers(self, *numbers: int) -> str:
        """A constant of axes, or of a shape."""
        return self.constant(numbers, np.int64)


def _check(model: Any, params: Any) -> None:
    """Raise TypeError or ValueError unless ONNX's GRU can compute the model and params are the model's."""
    check_is_model(model)
    check_model_params(params)
    check_like("params", named(params), jax.eval_shape(lambda: model.init(jax.random.key(0))))
    cell = model.cell
    if cell.reset == "none" or cell.layer_norm or cell.beta != 0 or cell.activation not in _ACTIVATIONS:
        raise ValueError(
            "cell must have a reset, tanh or relu, beta=0 and no layer normalisation to be computed by ONNX's GRU; "
            f"got {cell}."
        )
    dtype = np.asarray(params.b_y).dtype.name
    checks.check_choice("the dtype of params", dtype, ("float32", "float64"))
    if model.compute_dtype not in (None, dtype):
        raise ValueError(f"compute_dtype must be None: ONNX's GRU has no mixed precision; got {model.compute_dtype!r}.")
    if zoneout := model.zoneout:
        raise ValueError(f"zoneout must be 0: ONNX's GRU cannot apply its expected value; got {zoneout}.")


def _gru_weights(cell: Cell, directions: list[Params]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ONNX's W [n, 3H, D], R [n, 3H, H] and B [n, 6H] for n directions, with rows in the order z, r, h."""
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
    """The model as an ``onnx.ModelProto`` with input "xs" and output "ys", for any T and B of at least 1.

    xs are [T, B, D], or tokens, int64 [T, B]; ys are what the model's readout gives. With T or B of 0, onnxruntime's
    GRU ends the whole process.

    Args:
        model: any ``mgu_jax.Model`` whose cell has a reset: ``MGU``, ``MGU1`` to ``MGU3``, ``RESET_AFTER_MGU``,
            ``FLAX_MGU``, ``DIAGONAL_MGU``; with beta = 0.
        params: its parameters, of float32 (or float64, which few runtimes support).
        lengths: add an input "lengths", int32 [B].
        state: add an input "state_i" and an output "last_i" for every layer i, [n, B, H] for n directions. To process a
            stream, use T = 1 and pass each "last_i" as the next "state_i".

    Raises:
        TypeError: model is not an ``mgu_jax.Model``, or params not a ``ModelParams``.
        ValueError: params of a different model, or a cell, dtype or option that ONNX's GRU cannot compute.
    """
    _check(model, params)
    value, graph = onnx.helper.make_tensor_value_info, _Graph()
    dtype = np.asarray(params.b_y).dtype
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    if params.embedding is None:
        hs, inputs = "xs", [value("xs", kind, ["T", "B", model.input_size])]
    else:
        inputs = [value("xs", onnx.TensorProto.INT64, ["T", "B"])]
        hs = graph.add("Gather", graph.constant(params.embedding), "xs")
    if lengths:
        inputs.append(value("lengths", onnx.TensorProto.INT32, ["B"]))
    end, states, last_states = "", [], []
    for i, H in enumerate(model.hidden_sizes):
        start = f"state_{i}" if state else _start(graph, params, i, hs)
        new, last = _gru(graph, model, params, i, hs, start, lengths)
        if state:
            shape = [1 if params.backward is None else 2, "B", H]
            states.append(value(start, kind, shape))
            last_states.append(value(f"last_{i}", kind, shape))
            graph.name(last, f"last_{i}")
        new, new_end = _join_directions(graph, model, i, new, last)
        if model.residual and i > 0 and model.hidden_sizes[i - 1] == H:
            new, new_end = graph.add("Add", new, hs), graph.add("Add", new_end, end)
        hs, end = new, new_end
    rows = {"all": hs, "last": end}.get(model.readout) or _mean(graph, hs, dtype, lengths)
    ys = graph.add("Add", graph.add("MatMul", rows, graph.constant(params.readout)), graph.constant(params.b_y))
    graph.name(ys, "ys")
    outputs = [value("ys", kind, [*(["T"] if model.readout == "all" else []), "B", model.output_size]), *last_states]
    body = onnx.helper.make_graph(graph.nodes, "mgu_jax", inputs + states, outputs, graph.constants)
    made = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", OPSET)], producer_name="mgu_jax")
    made.ir_version = 8  # the version that came with the opset; onnx's own newest may be too new for a runtime
    onnx.checker.check_model(made, full_check=True)
    return made


def _gru(graph: _Graph, model: Model, params: ModelParams, i: int, hs: str, start: str, lengths: bool) -> list[str]:
    """The names of all states of layer i, [T, n, B, H], and of its last ones, [n, B, H]."""
    directions = [params.layers[i]] if params.backward is None else [params.layers[i], params.backward[i]]
    new, last = graph.add(
        "GRU",
        hs,
        *map(graph.constant, _gru_weights(model.cell, directions)),
        "lengths" if lengths else "",
        start,
        outputs=2,
        hidden_size=model.hidden_sizes[i],
        linear_before_reset=int(model.cell.reset == "after"),
        direction="forward" if len(directions) == 1 else "bidirectional",
        activations=["Sigmoid", _ACTIVATIONS[model.cell.activation]] * len(directions),
    )
    if lengths and start:  # onnxruntime gives zeros for a sequence of length 0
        is_empty = graph.add("Equal", "lengths", graph.constant(0, np.int32))
        last = graph.add("Where", graph.add("Unsqueeze", is_empty, graph.integers(0, 2)), start, last)
    return [new, last]


def _join_directions(graph: _Graph, model: Model, i: int, new: str, last: str) -> list[str]:
    """The names of new [T, n, B, H] and last [n, B, H] with their n directions added or put side by side."""
    if model.bidirectional == "sum":
        new = graph.add("ReduceSum", new, graph.integers(1), keepdims=0)
        return [new, graph.add("ReduceSum", last, graph.integers(0), keepdims=0)]
    width = model.hidden_sizes[i] * (2 if model.bidirectional else 1)
    new = graph.add("Reshape", graph.add("Transpose", new, perm=[0, 2, 1, 3]), graph.integers(0, 0, width))
    return [new, graph.add("Reshape", graph.add("Transpose", last, perm=[1, 0, 2]), graph.integers(0, width))]


def _start(graph: _Graph, params: ModelParams, i: int, hs: str) -> str:
    """The name of the state before the first step, [n, B, H]; "" is a state of zeros."""
    if params.h0 is None:
        return ""
    first = [params.h0.layers[i]] + ([] if params.h0.backward is None else [params.h0.backward[i]])
    stacked = np.stack(list(map(np.asarray, first)))[:, None]
    batch = graph.add("Gather", graph.add("Shape", hs), graph.integers(1))
    shape = graph.add("Concat", graph.integers(len(first)), batch, graph.integers(stacked.shape[-1]), axis=0)
    return graph.add("Expand", graph.constant(stacked), shape)


def _mean(graph: _Graph, hs: str, dtype: Any, lengths: bool) -> str:
    """The name of the mean over the valid steps of hs [T, B, H], whose padding is zero; a length of 0 counts as 1."""
    summed = graph.add("ReduceSum", hs, graph.integers(0), keepdims=0)
    steps = "lengths" if lengths else graph.add("Gather", graph.add("Shape", hs), graph.integers(0))
    steps = graph.add("Cast", steps, to=onnx.helper.np_dtype_to_tensor_dtype(dtype))
    if lengths:
        steps = graph.add("Unsqueeze", graph.add("Max", steps, graph.constant(1, dtype)), graph.integers(1))
    return graph.add("Div", summed, steps)
