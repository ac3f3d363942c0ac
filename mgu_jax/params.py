"""The notation of the whole project, the parameters of a layer, and how many they are.

    T time steps    B batch    D input features    H hidden features    K output features

Time comes first: ``xs [T, B, D]``, ``hs [T, B, H]``, ``h0 [B, H]``. Vectors are rows: ``x @ W``. ``W_*`` act on the
input, ``U_*`` on the state, ``b_*`` are biases; ``f`` is the forget gate and ``c`` the candidate, ``z_f`` and ``z_h``
are their pre-activations, and ``d<name>`` is the cotangent of ``<name>``. The letters are those of the paper: Zhou, Wu,
Zhang and Zhou, "Minimal Gated Unit for Recurrent Neural Networks" (2016), arXiv 1603.09420.
"""

from typing import Any, NamedTuple

import jax


class Params(NamedTuple):
    """The parameters of one layer, 2H(H + D + 1) numbers for the paper's cell (equations 6a to 6c):

        f  = sigmoid(x W_f + h U_f + b_f)
        c  = tanh(x W_h + (f*h) U_h + b_h)
        h' = (1 - f)*h + f*c

    A term that a member of the family lacks is ``None``.
    """

    W_f: Any  # [D, H]  input to gate
    U_f: Any  # [H, H]  state to gate; [H] where the recurrence is diagonal
    b_f: Any  # [H]     gate bias; negative remembers, positive overwrites
    W_h: Any  # [D, H]  input to candidate
    U_h: Any  # [H, H]  state to candidate; [H] where the recurrence is diagonal
    b_h: Any  # [H]     candidate bias
    b_r: Any = None  # [H]  bias inside the reset, of the members that reset after the product
    g_f: Any = None  # [H]  gain of the gate's layer normalisation, of the members that have it
    g_h: Any = None  # [H]  gain of the candidate's


def count(params: Any) -> int:
    """How many numbers a pytree of arrays holds: 2H(H + D + 1) for one layer of the paper's cell."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def gru_count(input_size: int, hidden_size: int) -> int:
    """Parameters of one GRU layer, 3H(H + D + 1), as the paper counts them (one bias a gate)."""
    return 3 * hidden_size * (hidden_size + input_size + 1)


def lstm_count(input_size: int, hidden_size: int) -> int:
    """Parameters of one LSTM layer, 4H(H + D + 1), as the paper counts them (one bias a gate)."""
    return 4 * hidden_size * (hidden_size + input_size + 1)


def summary(params: Params) -> str:
    """A table of one layer: names, shapes, dtypes, counts and bytes, and the ratio to a GRU and an LSTM of its size.

    The counts of GRU and LSTM are the paper's, with one bias a gate.

    Raises:
        TypeError: something else than a ``Params`` of arrays.
    """
    if not isinstance(params, Params):
        came = type(params).__name__
        raise TypeError(f"params must be an mgu_jax.Params, such as one of a model's layers; got a {came}.")
    for name, array in params._asdict().items():
        if not hasattr(array, "nbytes") and (array is not None or name == "W_h"):
            raise TypeError(f"params.{name} must be an array; got a {type(array).__name__}.")
    D, H = params.W_h.shape
    present = {name: array for name, array in params._asdict().items() if array is not None}
    rows = [(name, str(list(a.shape)), str(a.dtype), f"{a.size:,}", f"{a.nbytes:,}") for name, a in present.items()]
    total, size = count(params), sum(a.nbytes for a in present.values())
    head = ("name", "shape", "dtype", "count", "bytes")
    table = [head, *rows, ("total", "", "", f"{total:,}", f"{size:,}")]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    ratios = [
        f"{total / other:.3f} of {name}'s {other:,}"
        for name, other in (("a GRU", gru_count(D, H)), ("an LSTM", lstm_count(D, H)))
    ]
    return "\n".join([*lines, ", ".join(ratios)])
