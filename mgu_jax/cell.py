"""The family of one-gate cells: one specification, one step, one backward.

The paper's cell (Zhou et al. 2016, arXiv 1603.09420, equations 6a to 6c) is the member ``MGU``:

    (1)  f  = sigmoid(x W_f + h U_f + b_f)
    (2)  c  = tanh(x W_h + r U_h + b_h)           r = f*h
    (3)  h' = (1 - f)*h + f*c

so f = 1 overwrites the state and f = 0 keeps it. For a cotangent g of h', reading the equations from the last to the
first gives its backward:

    (4)  dz_h = g * f * (1 - c^2)                 through (3) and the tanh of (2)
    (5)  dr   = dz_h U_h^T                        through (2)
    (6)  df   = g*(c - h) + dr*h                  through (3), and through r
    (7)  dz_f = df * f * (1 - f)                  through the sigmoid of (1)
    (8)  dh   = g*(1 - f) + dr*f + dz_f U_f^T     through (3), r and (1)
    (9)  dx   = dz_f W_f^T + dz_h W_h^T           through (1) and (2)
    (10) dW_f = x^T dz_f    dU_f = h^T dz_f    db_f = sum dz_f
    (11) dW_h = x^T dz_h    dU_h = r^T dz_h    db_h = sum dz_h

Only (5) and (8) wait for anything that depends on the order of time. What acts on x (``project``) and what makes the
gradients of the weights (``collect``) are products over rows, however many; a loop over time needs ``advance`` and
``retreat`` alone. The code's lines carry these numbers. The relatives of the MGU change a term here and there, and each
change stands in the same line as the term that it changes.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mgu_jax import checks
from mgu_jax.params import INITIALIZERS, Params, draw
from mgu_jax.products import Products, like

# Activation of the candidate, and its derivative written in terms of its value.
_ACTIVATIONS = {
    "tanh": (jnp.tanh, lambda c: 1 - c * c),
    "relu": (jax.nn.relu, lambda c: (c > 0).astype(c.dtype)),
    "identity": (lambda z: z, jnp.ones_like),
}


@dataclass(frozen=True)
class Cell:
    """A member of the family: static and hashable, it travels through ``jit`` as a constant.

    Attributes:
        gate: what feeds the gate, some of "x", "h", "b" in this order.
        reset: whether f scales the state "before" its product with U_h, the product "after" it, or "none".
        update: how much of the candidate enters the state, "f" (the paper's sign) or "1-f" (Flax's).
        candidate: what feeds the candidate, "xhb", or "xb" for one that does not see the state.
        recurrence: "dense" (U is [H, H]) or "diagonal" (U is [H], the recurrence is elementwise).
        activation: of the candidate, "tanh", "relu" or "identity".

    Raises:
        ValueError: a value that is not among these, or a reset of a candidate that does not see the state.
    """

    gate: str = "xhb"
    reset: str = "before"
    update: str = "f"
    candidate: str = "xhb"
    recurrence: str = "dense"
    activation: str = "tanh"

    def __post_init__(self) -> None:
        checks.check_choice("gate", self.gate, ("xhb", "xh", "xb", "hb", "x", "h", "b"))
        checks.check_choice("reset", self.reset, ("before", "after", "none"))
        checks.check_choice("update", self.update, ("f", "1-f"))
        checks.check_choice("candidate", self.candidate, ("xhb", "xb"))
        checks.check_choice("recurrence", self.recurrence, ("dense", "diagonal"))
        checks.check_choice("activation", self.activation, tuple(_ACTIVATIONS))
        if "h" not in self.candidate and self.reset != "none":
            raise ValueError(f"reset must be 'none' for a candidate that does not see the state; got {self.reset!r}.")

    def shapes(self, input_size: int, hidden_size: int) -> Params:
        """``Params`` of shapes for D input and H hidden features; ``None`` for a term that the member lacks."""
        W, b = (input_size, hidden_size), (hidden_size,)
        U = b if self.recurrence == "diagonal" else (hidden_size, hidden_size)
        return Params(
            W_f=W if "x" in self.gate else None,
            U_f=U if "h" in self.gate else None,
            b_f=b if "b" in self.gate else None,
            W_h=W,
            U_h=U if "h" in self.candidate else None,
            b_h=b,
            b_r=b if self.reset == "after" else None,
        )


MGU = Cell()


class Inputs(NamedTuple):
    """The input's share of the pre-activations, [..., H]; ``None`` where x does not feed the gate."""

    f: Array | None  # x W_f
    h: Array  # x W_h


class Gates(NamedTuple):
    """What a step computes besides the state and its backward needs, [..., H] each."""

    f: Array
    c: Array
    q: Array | None  # h U_h + b_r, of the members that reset after the product


class Residuals(NamedTuple):
    """What ``step_forward`` keeps for ``step_backward``."""

    x: Array  # [..., D]
    h: Array  # [..., H], the state that entered the step
    gates: Gates


def _total(rows: Array, b: Array | None, *terms: Array | None) -> Array:
    """The sum of a pre-activation's terms, those that are there."""
    present = [term for term in terms if term is not None] + ([] if b is None else [like(b, rows)])
    return sum(present[1:], present[0])


def project(params: Params, x: Array, product: Products = Products()) -> Inputs:
    """x W_f and x W_h: all of a step that does not wait for the state."""
    return Inputs(product(x, params.W_f), product(x, params.W_h))


def advance(params: Params, h: Array, a: Inputs, cell: Cell, product: Products = Products()) -> tuple[Array, Gates]:
    """One step, given the input's share of the pre-activations: [..., H] -> [..., H]."""
    f = jax.nn.sigmoid(_total(h, params.b_f, a.f, product(h, params.U_f)))  # (1)
    q = _total(h, params.b_r, product(h, params.U_h)) if cell.reset == "after" else None
    s = f * q if q is not None else product(f * h if cell.reset == "before" else h, params.U_h)
    c = _ACTIVATIONS[cell.activation][0](_total(h, params.b_h, a.h, s))  # (2)
    u = f if cell.update == "f" else 1 - f
    return (1 - u) * h + u * c, Gates(f, c, q)  # (3)


def retreat(
    params: Params, h: Array, gates: Gates, g: Array, cell: Cell, product: Products = Products()
) -> tuple[Array, Array, Array]:
    """The cotangent g of the new state, [..., H], taken back to (dh, dz_f, dz_h), [..., H] each."""
    f, c, q = gates
    u = f if cell.update == "f" else 1 - f
    dz_h = g * u * _ACTIVATIONS[cell.activation][1](c)  # (4)
    df = g * (c - h) if cell.update == "f" else g * (h - c)  # (6), through (3)
    dh = g * (1 - u)  # (8), through (3)
    if q is None:
        dr = product.back(dz_h, params.U_h)  # (5)
    else:
        dr, df = product.back(dz_h * f, params.U_h), df + dz_h * q
    if cell.reset == "before":
        df, dh = df + dr * h, dh + dr * f  # (6) and (8), through r
    elif dr is not None:
        dh = dh + dr
    dz_f = df * f * (1 - f)  # (7)
    return _total(h, None, dh, product.back(dz_f, params.U_f)), dz_f, dz_h  # (8), through (1)


def collect(
    params: Params,
    x: Array,
    h: Array,
    gates: Gates,
    dz_f: Array,
    dz_h: Array,
    cell: Cell,
    product: Products = Products(),
) -> tuple[Params, Array]:
    """The cotangents (dparams, dx) of rows of any number: x [..., D], the states that entered h [..., H], and so on."""
    dx = _total(x, None, product.back(dz_h, params.W_h), product.back(dz_f, params.W_f))  # (9)
    r = gates.f * h if cell.reset == "before" else h
    ds = dz_h * gates.f if cell.reset == "after" else dz_h

    def bias(dz: Array, b: Array | None) -> Array | None:
        return None if b is None else jnp.sum(dz.reshape(-1, dz.shape[-1]), 0)

    dparams = Params(
        W_f=product.weight(x, dz_f, params.W_f),  # (10)
        U_f=product.weight(h, dz_f, params.U_f),
        b_f=bias(dz_f, params.b_f),
        W_h=product.weight(x, dz_h, params.W_h),  # (11)
        U_h=product.weight(r, ds, params.U_h),
        b_h=bias(dz_h, params.b_h),
        b_r=bias(ds, params.b_r),
    )
    return dparams, dx


def init(
    key: Array,
    input_size: int,
    hidden_size: int,
    cell: Cell = MGU,
    *,
    initializer: str = "orthogonal",
    forget_bias: Any = -1.0,
    dtype: Any = jnp.float32,
) -> Params:
    """Initial parameters of one layer.

    Args:
        key: one PRNG key.
        input_size: D, at least 1.
        hidden_size: H, at least 1.
        cell: the member of the family.
        initializer: "orthogonal" (orthogonal U, Glorot W), "glorot" (both), "uniform" (both from
            U(-1/sqrt(H), 1/sqrt(H)), as PyTorch draws them), "notebook" (both from U(-0.05, 0.05)) or
            "notebook_normal" (both from N(-0.05, 0.1^2), which is what the notebook's code drew).
        forget_bias: the initial b_f, a number or [H], in the paper's sign: -1, the default, remembers, and +1
            overwrites. A member whose update is "1-f" gets its negative, so that it means the same. May be traced.
            A member without b_f has none to set.
        dtype: a floating dtype.

    Returns:
        ``Params``; b_h is zero.

    Raises:
        TypeError: cell is no Cell, key is not one PRNG key, or dtype is not floating.
        ValueError: a size below 1, an unknown initializer, or a forget_bias of another shape.
    """
    check_cell(cell)
    checks.check_key("key", key)
    checks.check_size("input_size", input_size)
    checks.check_size("hidden_size", hidden_size)
    checks.check_choice("initializer", initializer, INITIALIZERS)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating dtype; got {jnp.dtype(dtype)}.")
    if jnp.shape(forget_bias) not in ((), (hidden_size,)):
        raise ValueError(f"forget_bias must be a number or [{hidden_size}]; got {checks.describe(forget_bias)}.")
    params = draw(key, cell.shapes(input_size, hidden_size), initializer, dtype)
    if params.b_f is None:
        return params
    sign = 1 if cell.update == "f" else -1
    return params._replace(b_f=params.b_f + sign * jnp.asarray(forget_bias, dtype))


def check_cell(cell: Any) -> None:
    """``cell`` is a member of the family."""
    if not isinstance(cell, Cell):
        raise TypeError(f"cell must be an mgu_jax.Cell, such as mgu_jax.MGU; got {checks.describe(cell)}.")


def _check_rows(params: Params, h: Any, x: Any, cell: Cell) -> None:
    check_cell(cell)
    checks.check_params(params, cell)
    checks.check_features("x", x, "..., ", params, "W_h")
    checks.check_features("h", h, "..., ", params, "b_h")
    checks.check_shape("h", h, (*x.shape[:-1], h.shape[-1]), "the batch of x and the width of params")


def step(params: Params, h: Array, x: Array, cell: Cell = MGU) -> Array:
    """The state after one step: h [..., H], x [..., D] -> h' [..., H] (equations 1 to 3).

    Raises:
        TypeError: an argument that is no array, or not of the dtype of params.
        ValueError: shapes that do not fit each other.
    """
    return step_forward(params, h, x, cell)[0]


def step_forward(params: Params, h: Array, x: Array, cell: Cell = MGU) -> tuple[Array, Residuals]:
    """``step``, and the residuals that ``step_backward`` needs. Raises as ``step`` does."""
    _check_rows(params, h, x, cell)
    h_next, gates = advance(params, h, project(params, x), cell)
    return h_next, Residuals(x, h, gates)


def step_backward(
    params: Params, residuals: Residuals, dh_next: Array, cell: Cell = MGU
) -> tuple[Params, Array, Array]:
    """The backward of ``step_forward`` for the cotangent dh_next [..., H] of its state (equations 4 to 11).

    Returns:
        (dparams, dh [..., H], dx [..., D]); the gradients of the parameters are summed over the batch.

    Raises:
        TypeError: residuals of another kind, or dh_next is no array of the dtype of params.
        ValueError: dh_next has not the shape of the state.
    """
    if not isinstance(residuals, Residuals):
        raise TypeError(f"residuals must be a Residuals, as step_forward makes it; got {checks.describe(residuals)}.")
    x, h, gates = residuals
    _check_rows(params, h, x, cell)
    checks.check_features("dh_next", dh_next, "..., ", params, "b_h")
    checks.check_shape("dh_next", dh_next, h.shape, "the shape of the state")
    dh, dz_f, dz_h = retreat(params, h, gates, dh_next, cell)
    dparams, dx = collect(params, x, h, gates, dz_f, dz_h, cell)
    return dparams, dh, dx
