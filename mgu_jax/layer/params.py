"""The notation of the whole project, and the parameters of a layer: their shapes, counts and checks.

    T time steps    B batch    D input features    H hidden features    K output features

Time comes first: ``xs [T, B, D]``, ``hs [T, B, H]``, ``h0 [B, H]``. Vectors are rows: ``x @ W``. ``W_*`` act on the
input, ``U_*`` on the state, ``b_*`` are biases; ``f`` is the forget gate and ``c`` the candidate, ``z_f`` and ``z_h``
are their pre-activations, and ``d<name>`` is the cotangent of ``<name>``. The letters are those of the paper: Zhou, Wu,
Zhang and Zhou, "Minimal Gated Unit for Recurrent Neural Networks" (2016), arXiv 1603.09420.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mgu_jax import checks

# An array (of JAX or NumPy, perhaps traced), or None where the member of the family lacks the term. Only the cell says
# which of the two it is, so a type checker cannot know.
Term = Any


class Params(NamedTuple):
    """The parameters of one layer, 2H(H + D + 1) numbers for the paper's cell (equations 6a to 6c):

        f  = sigmoid(x W_f + h U_f + b_f)
        c  = tanh(x W_h + (f*h) U_h + b_h)
        h' = (1 - f)*h + f*c

    A term that a member of the family lacks is ``None``.
    """

    W_f: Term  # [D, H]  input to gate
    U_f: Term  # [H, H]  state to gate; [H] where the recurrence is diagonal
    b_f: Term  # [H]     gate bias; negative remembers, positive overwrites
    W_h: Term  # [D, H]  input to candidate
    U_h: Term  # [H, H]  state to candidate; [H] where the recurrence is diagonal
    b_h: Term  # [H]     candidate bias
    b_r: Term = None  # [H]  bias inside the reset, of members that reset after the product
    g_f: Term = None  # [H]  gain of the gate's layer normalisation, of members that have it
    g_h: Term = None  # [H]  gain of the candidate's layer normalisation


def count(params: Any) -> int:
    """The number of numbers in a pytree of arrays: 2H(H + D + 1) for one layer of the paper's cell."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def gru_count(input_size: int, hidden_size: int) -> int:
    """The number of parameters of one GRU layer, 3H(H + D + 1), as the paper counts them (one bias per gate)."""
    return 3 * hidden_size * (hidden_size + input_size + 1)


def lstm_count(input_size: int, hidden_size: int) -> int:
    """The number of parameters of one LSTM layer, 4H(H + D + 1), as the paper counts them (one bias per gate)."""
    return 4 * hidden_size * (hidden_size + input_size + 1)


def summary(params: Any) -> str:
    """A table of one layer or of a model as text: names, shapes, dtypes, counts and bytes, and ratios to GRU and LSTM.

    The ratios are those of the recurrent layers alone. The counts of a GRU and an LSTM of the same sizes are the
    paper's, with one bias per gate.

    Args:
        params: ``Params`` of a layer, ``ModelParams`` of a model, or another pytree of arrays with layers in it.

    Raises:
        TypeError: params holds no layer, or something other than arrays.
        ValueError: a layer's W_h is not [D, H].
    """
    layers = [part for part in jax.tree.leaves(params, is_leaf=_is_layer) if _is_layer(part)]
    if not layers:
        rule = "an mgu_jax.Params, or an mgu_jax.ModelParams that holds some"
        raise TypeError(f"params must be {rule}; got {checks.describe(params)}.")
    for layer in layers:
        if not hasattr(layer.W_h, "nbytes"):
            raise TypeError(f"params.W_h must be an array; got {checks.describe(layer.W_h)}.")
        if layer.W_h.ndim != 2:
            raise ValueError(f"params.W_h must have shape [D, H]; got {list(layer.W_h.shape)}.")
    rows, total, size = [], 0, 0
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path).removeprefix(".")
        if not hasattr(array, "nbytes"):
            raise TypeError(f"params.{name} must be an array; got {checks.describe(array)}.")
        rows.append((name, str(list(array.shape)), str(array.dtype), f"{array.size:,}", f"{array.nbytes:,}"))
        total, size = total + array.size, size + array.nbytes
    head = ("name", "shape", "dtype", "count", "bytes")
    table = [head, *rows, ("total", "", "", f"{total:,}", f"{size:,}")]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    recurrent, sizes = count(layers), [layer.W_h.shape for layer in layers]
    others = {"a GRU": sum(gru_count(*DH) for DH in sizes), "an LSTM": sum(lstm_count(*DH) for DH in sizes)}
    ratios = ", ".join(f"{recurrent / other:.3f} of {name}'s {other:,}" for name, other in others.items())
    return "\n".join([*lines, ratios if recurrent == total else f"recurrent layers {recurrent:,}: {ratios}"])


def _is_layer(value: Any) -> bool:
    return isinstance(value, Params)


def check_params(params: Any, cell: Any) -> tuple[int, int]:
    """The sizes (D, H) of params, which fit the cell.

    Raises:
        TypeError: params is not a ``Params``, an entry is not a floating array, or the dtypes differ.
        ValueError: params has a term that the cell lacks or lacks one that it needs, or the shapes do not fit.
    """
    if not isinstance(params, Params):
        raise TypeError(f"params must be an mgu_jax.Params, as mgu_jax.init makes it; got {checks.describe(params)}.")
    for name, value in params._asdict().items():
        if value is not None and not isinstance(value, jax.Array | np.ndarray):
            raise TypeError(f"params.{name} must be an array; got {checks.describe(value)}.")
    W_h = params.W_h
    if W_h is None or W_h.ndim != 2 or 0 in W_h.shape:
        raise ValueError(f"params.W_h must have shape [D, H] with D and H at least 1; got {checks.describe(W_h)}.")
    if not jnp.issubdtype(W_h.dtype, jnp.floating):
        raise TypeError(f"params.W_h must be of a floating dtype; got {checks.describe(W_h)}.")
    D, H = W_h.shape
    for name, shape in cell.shapes(D, H)._asdict().items():
        value = getattr(params, name)
        if shape is None:
            if value is not None:
                raise ValueError(
                    f"params.{name} must be None (the cell has no such term); got {checks.describe(value)}."
                )
            continue
        if value is None:
            raise ValueError(f"params.{name} must have shape {list(shape)} (the cell needs it); got None.")
        checks.check_array(f"params.{name}", value, checks.dtype_of(W_h), "the dtype of params.W_h")
        checks.check_shape(f"params.{name}", value, shape, f"params.W_h is {[D, H]}")
    return D, H


def check_features(name: str, value: Any, leading: str, params: Params, source: str) -> None:
    """Raise TypeError or ValueError unless value has the dtype of params and the features of params' ``source``.

    ``source`` is "W_h" for inputs (its rows) and "b_h" for states (its length). ``leading`` names the axes before the
    features in the text of an error, such as "T, ..., ".
    """
    weight = getattr(params, source)
    checks.check_array(name, value, checks.dtype_of(params.W_h), "the dtype of params")
    needed = leading.count(",") - leading.count("...")
    if value.ndim < needed + 1 or value.shape[-1] != weight.shape[0]:
        hint = _hint(name, value, weight.shape[0]) if source == "W_h" else ""
        raise ValueError(
            f"{name} must have shape [{leading}{weight.shape[0]}] (params.{source} is {list(weight.shape)}); "
            f"got {list(value.shape)}{hint}."
        )


def _hint(name: str, value: Any, D: int) -> str:
    """What to check where inputs do not have D features."""
    if D in value.shape[:-1]:
        return f": features come last, and axis {value.shape.index(D)} has {D}"
    if D == 1:
        return f": {name}[..., None] has one feature"
    return f": either {name} lacks features, or params are those of another layer"


def time_first(time_axis: Any, xs: Any, axes: int, **marks: Any) -> tuple[Any, ...]:
    """xs and the marks of its steps, in order, with the axis of time in front.

    Raises:
        TypeError: a mark is not bool.
        ValueError: time_axis is not one of the ``axes`` axes of xs before its features, or a mark has not their shape.
    """
    if isinstance(time_axis, bool) or not isinstance(time_axis, int | np.integer) or not 0 <= time_axis < axes:
        raise ValueError(
            f"time_axis must be a whole number in [0, {axes}), one of the axes of xs before its features; "
            f"got {checks.describe(time_axis)}."
        )
    for name, value in marks.items():
        check_resets(value, xs.shape[:axes], name=name)
    return tuple(None if value is None else jnp.moveaxis(value, int(time_axis), 0) for value in (xs, *marks.values()))


def check_time_first(shape: tuple[int, ...], others: dict[str, Any]) -> None:
    """Raise ValueError if the shape [T, ...] of the steps of xs, without features, looks like batch first.

    It does if another array, of shape [...] or [..., H], fits the axis that should be time and not the batch.
    """
    if not all(isinstance(size, int) for size in shape):  # a size that jax.export leaves open
        return
    for name, value in others.items():
        came = getattr(value, "shape", ())
        batch = came if name == "lengths" else came[:-1]
        if len(shape) > 1 and batch != shape[1:] and batch == (shape[0], *shape[2:]):
            raise ValueError(
                f"xs must have time first, or come with time_axis=1, and {name} of shape {list(came)} fits xs with the "
                f"batch first; got xs of shape {list(shape)} without its features."
            )


def check_state(name: str, value: Any, batch: tuple[int, ...], params: Params, of: str = "xs") -> None:
    """Raise TypeError or ValueError unless value is a state [batch..., H] for the inputs that are named ``of``."""
    check_features(name, value, "..., ", params, "b_h")
    shape = (*batch, value.shape[-1])
    checks.check_shape(name, value, shape, f"the batch of {of} and the width of params")


def check_lengths(lengths: Any, steps: int, batch: tuple[int, ...], name: str = "lengths", of: str = "xs") -> None:
    """Raise TypeError or ValueError unless lengths is ``None``, or one whole number in [0, T] per sequence.

    Traced values cannot be checked and pass.
    """
    if lengths is None:
        return
    if not isinstance(lengths, jax.Array | np.ndarray) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"{name} must be an array of whole numbers; got {checks.describe(lengths)}.")
    checks.check_shape(name, lengths, batch, f"the batch of {of}")
    if checks.is_concrete(lengths) and lengths.size:
        outside = np.asarray(lengths)[(np.asarray(lengths) < 0) | (np.asarray(lengths) > steps)]
        if outside.size:
            raise ValueError(f"{name} must lie in [0, {steps}] ({of} has {steps} steps); got {outside.flat[0]}.")


def check_resets(resets: Any, shape: tuple[int, ...], of: str = "xs", name: str = "resets") -> None:
    """Raise TypeError or ValueError unless resets is ``None``, or one bool per step and sequence."""
    if resets is None:
        return
    if not isinstance(resets, jax.Array | np.ndarray) or resets.dtype != bool:
        raise TypeError(f"{name} must be an array of bool; got {checks.describe(resets)}.")
    checks.check_shape(name, resets, shape, f"the {'steps and the ' if name == 'resets' else ''}batch of {of}")
