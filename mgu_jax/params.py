"""The notation of the whole project, the parameters of a layer and their initial values.

    T time steps    B batch    D input features    H hidden features    K output features

Time comes first: ``xs [T, B, D]``, ``hs [T, B, H]``, ``h0 [B, H]``. Vectors are rows: ``x @ W``. ``W_*`` act on the
input, ``U_*`` on the state, ``b_*`` are biases; ``f`` is the forget gate and ``c`` the candidate, ``z_f`` and ``z_h``
are their pre-activations, and ``d<name>`` is the cotangent of ``<name>``. The letters are those of the paper: Zhou, Wu,
Zhang and Zhou, "Minimal Gated Unit for Recurrent Neural Networks" (2016), arXiv 1603.09420.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Initializer = Callable[..., Array]


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


def _notebook_normal(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return 0.1 * jax.random.normal(key, shape, dtype) - 0.05


def _between(limit: float) -> Initializer:
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def _schemes(hidden_size: int) -> dict[str, tuple[Initializer, Initializer]]:
    """Name -> (how W is drawn, how U is drawn), for a layer of width H."""
    uniform, notebook = _between(hidden_size**-0.5), _between(0.05)
    glorot = jax.nn.initializers.glorot_uniform()
    return {
        "orthogonal": (glorot, jax.nn.initializers.orthogonal()),
        "glorot": (glorot, glorot),
        "uniform": (uniform, uniform),
        "notebook": (notebook, notebook),
        "notebook_normal": (_notebook_normal, _notebook_normal),
    }


INITIALIZERS = tuple(_schemes(1))


def draw(key: Array, shapes: Params, initializer: str, dtype: Any) -> Params:
    """Weights drawn by the named initialiser; biases at zero.

    Args:
        key: one PRNG key; every array gets a key of its own from it, so that a member which lacks a term draws the
            others as its relatives do.
        shapes: ``Params`` of shapes, ``None`` where a term is absent.
        initializer: one of ``INITIALIZERS``.
        dtype: the type of all arrays.

    A diagonal U, [H], has no fan-in to scale by and no orthogonal form: it is drawn from U(-1/sqrt(H), 1/sqrt(H)),
    by the notebook's initialisers as they draw everything.
    """
    hidden_size = shapes.b_h[0]
    scheme = _schemes(hidden_size)[initializer]
    diagonal = scheme[1] if initializer.startswith("notebook") else _between(hidden_size**-0.5)

    def one(name: str, key: Array, shape: tuple[int, ...] | None) -> Array | None:
        if shape is None:
            return None
        if name.startswith("b_"):
            return jnp.zeros(shape, dtype)
        kernel = scheme[0] if name.startswith("W_") else scheme[1]
        return (kernel if len(shape) == 2 else diagonal)(key, shape, dtype)

    keys = jax.random.split(key, len(Params._fields))
    return Params(*map(one, Params._fields, keys, shapes))


def count(params: Any) -> int:
    """How many numbers a pytree of arrays holds: 2H(H + D + 1) for one layer of the paper's cell."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def gru_count(input_size: int, hidden_size: int) -> int:
    """Parameters of one GRU layer, 3H(H + D + 1), as the paper counts them (one bias a gate)."""
    return 3 * hidden_size * (hidden_size + input_size + 1)


def lstm_count(input_size: int, hidden_size: int) -> int:
    """Parameters of one LSTM layer, 4H(H + D + 1), as the paper counts them (one bias a gate)."""
    return 4 * hidden_size * (hidden_size + input_size + 1)
