"""One step of a one-gate cell, and its backward, written by hand.

The paper's cell (Zhou et al. 2016, arXiv 1603.09420, equations 6a to 6c) is the member ``MGU`` of the family:

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
``retreat`` alone. The code's lines carry these numbers.

The relatives of the MGU (``family.py``) change a term here and there, each in the line where the term stands:

    u           the share of the candidate in (3): f, or 1 - f; times k where only a part of the update happens
    v           what the products see of the state: h, or h under a mask
    q           v U_h + b_r, which members that reset after the product scale by f
    s_f, s_h    the sums in (1) and (2) before layer normalisation and bias; z itself where there is none
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mgu_jax import checks
from mgu_jax.layer.family import MGU, Cell, check_cell
from mgu_jax.layer.layer_norm import normalise, normalise_backward
from mgu_jax.layer.params import Params, check_features, check_params
from mgu_jax.layer.products import Products, like, transposed

# The candidate's activation, and its derivative in terms of its value.
_ACTIVATION = {"tanh": jnp.tanh, "relu": jax.nn.relu, "identity": lambda z: z}
_SLOPE = {"tanh": lambda c: 1 - c * c, "relu": lambda c: (c > 0).astype(c.dtype), "identity": jnp.ones_like}


class Inputs(NamedTuple):
    """What a step takes besides the state; made for all steps at once, before the loop."""

    f: Any  # x W_f, [..., H]; None where x does not feed the gate
    h: Any  # x W_h, [..., H]
    k: Any = None  # [..., H] or [..., 1], how much of the update happens: 0 keeps the state; None is all of it


class Gates(NamedTuple):
    """What a step computes besides the state, and its backward needs; [..., H] each."""

    f: Any
    c: Any
    q: Any = None
    norm_f: Any = None  # of the members with layer normalisation: (normalised s_f, 1/std)
    norm_h: Any = None


class Loop(NamedTuple):
    """What stays the same from step to step, arranged once before the loop."""

    params: Params
    U: Any = None  # [U_f | U_h], [H, 2H], where both products see the same rows and one of twice the width serves
    m: Any = None  # [..., H], the mask in v; None where v is h
    # Of the backward: transposed once; done in each step, it makes the products of the backward 1.2 times as slow.
    U_fT: Any = None
    U_hT: Any = None
    UT: Any = None


class Residuals(NamedTuple):
    """What ``step_forward`` keeps for ``step_backward``."""

    x: Array  # [..., D]
    h: Array  # [..., H], the state that entered the step
    gates: Gates


def _total(*terms: Any) -> Any:
    """The sum of the terms that are there; ``None`` if there are none."""
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


def _masked(h: Any, m: Any) -> Any:
    return h if h is None or m is None else h * like(m, h)


def _part(k: Any, update: Array) -> Array:
    return update if k is None else update * k


def share(f: Array, k: Any, cell: Cell) -> Array:
    """u, the share of the candidate in the new state."""
    return _part(k, f if cell.update == "f" else 1 - f)


def arrange(params: Params, cell: Cell, m: Array | None = None) -> Loop:
    """The weights as a loop over time wants them."""
    U = jnp.concatenate([params.U_f, params.U_h], 1) if cell.joint else None
    return Loop(params, U, m)


def turned(loop: Loop) -> Loop:
    """The same with the transposed weights, as a loop back in time wants them too."""
    if loop.U is not None:
        return loop._replace(UT=transposed(loop.U))
    return loop._replace(U_fT=transposed(loop.params.U_f), U_hT=transposed(loop.params.U_h))


def project(params: Params, x: Array, product: Products = Products()) -> Inputs:
    """x W_f and x W_h: all of a step that does not wait for the state."""
    return Inputs(product(x, params.W_f), product(x, params.W_h))


def advance(loop: Loop, h: Array, a: Inputs, cell: Cell, product: Products = Products()) -> tuple[Array, Gates]:
    """One step, given the input's share of the pre-activations: [..., H] -> [..., H]."""
    params, v = loop.params, _masked(h, loop.m)
    if cell.joint:
        vU_f, vU_h = jnp.split(product(v, loop.U), 2, -1)
    else:
        vU_f, vU_h = product(v, params.U_f), None if cell.reset == "before" else product(v, params.U_h)
    s_f, norm_f = normalise(_total(a.f, vU_f), params.g_f)
    f = jax.nn.sigmoid(_total(s_f, like(params.b_f, h)))  # (1)
    q = None
    if cell.reset == "before":
        vU_h = product(f * v, params.U_h)
    elif cell.reset == "after":
        q = _total(vU_h, like(params.b_r, h))
        vU_h = f * q
    s_h, norm_h = normalise(_total(a.h, vU_h), params.g_h)
    c = _ACTIVATION[cell.activation](_total(s_h, like(params.b_h, h)))  # (2)
    u = share(f, a.k, cell)
    return (1 - u) * h + u * c, Gates(f, c, q, norm_f, norm_h)  # (3)


def retreat(
    loop: Loop, h: Array, gates: Gates, k: Any, g: Array, cell: Cell, product: Products = Products()
) -> tuple[Array, Array, Array]:
    """The cotangent g of the new state, [..., H], taken back to (dh, dz_f, dz_h), [..., H] each."""
    params, v = loop.params, _masked(h, loop.m)
    f, c, q, norm_f, norm_h = gates
    u = share(f, k, cell)
    dz_h = g * u * _SLOPE[cell.activation](c)  # (4)
    ds_h = normalise_backward(dz_h, params.g_h, norm_h)
    # (6) and (7) as one, the slope of the sigmoid first: a huge state must not overflow where the gate is saturated.
    slope = f * (1 - f)
    dz_f = _part(k, g) * slope * (c - h if cell.update == "f" else h - c)  # through (3)
    if cell.reset == "before":
        dr = product(ds_h, loop.U_hT)  # (5)
        dz_f, dv = dz_f + dr * slope * v, dr * f  # (6) and (8), through r
    else:
        if cell.reset == "after":
            dz_f, ds_h = dz_f + ds_h * slope * q, ds_h * f
        dv = None if cell.joint else product(ds_h, loop.U_hT)
    ds_f = normalise_backward(dz_f, params.g_f, norm_f)
    dv = product(jnp.concatenate([ds_f, ds_h], -1), loop.UT) if cell.joint else _total(dv, product(ds_f, loop.U_fT))
    return _total(g * (1 - u), _masked(dv, loop.m)), dz_f, dz_h  # (8)


def collect(
    loop: Loop, x: Array, h: Array, gates: Gates, dz_f: Array, dz_h: Array, cell: Cell, product: Products = Products()
) -> tuple[Params, Array]:
    """The cotangents (dparams, dx) of rows of any number: x [..., D], the states that entered h [..., H], and so on."""
    params, v = loop.params, _masked(h, loop.m)
    ds_f = normalise_backward(dz_f, params.g_f, gates.norm_f)
    ds_h = normalise_backward(dz_h, params.g_h, gates.norm_h)
    dx = _total(product(ds_h, transposed(params.W_h)), product(ds_f, transposed(params.W_f)))  # (9)
    r, dq = (gates.f * v, ds_h) if cell.reset == "before" else (v, ds_h * gates.f if cell.reset == "after" else ds_h)

    def summed(dz: Any, b: Any) -> Any:
        return None if b is None else jnp.sum(dz.reshape(-1, dz.shape[-1]), 0)

    dparams = Params(
        W_f=product.weight(x, ds_f, params.W_f),  # (10)
        U_f=product.weight(v, ds_f, params.U_f),
        b_f=summed(dz_f, params.b_f),
        W_h=product.weight(x, ds_h, params.W_h),  # (11)
        U_h=product.weight(r, dq, params.U_h),
        b_h=summed(dz_h, params.b_h),
        b_r=summed(dq, params.b_r),
        g_f=None if params.g_f is None else summed(dz_f * gates.norm_f[0], params.g_f),
        g_h=None if params.g_h is None else summed(dz_h * gates.norm_h[0], params.g_h),
    )
    return dparams, dx


def check_rows(params: Params, h: Any, x: Any, cell: Cell) -> None:
    """h [..., H] and x [..., D] fit each other and params."""
    check_cell(cell)
    check_params(params, cell)
    check_features("x", x, "..., ", params, "W_h")
    check_features("h", h, "..., ", params, "b_h")
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
    check_rows(params, h, x, cell)
    h_next, gates = advance(arrange(params, cell), h, project(params, x), cell)
    return h_next, Residuals(x, h, gates)


def step_backward(
    params: Params, residuals: Residuals, dh_next: Array, cell: Cell = MGU
) -> tuple[Params, Array, Array]:
    """The backward of ``step_forward`` for the cotangent dh_next [..., H] of its state (equations 4 to 11).

    Returns:
        (dparams, dh [..., H], dx [..., D]); the gradients of the parameters are summed over the batch.

    Raises:
        TypeError: residuals of another kind, or dh_next is no array of the dtype of params.
        ValueError: dh_next has not the shape of the state, or residuals of another cell or batch, where it shows.
    """
    if not isinstance(residuals, Residuals):
        raise TypeError(f"residuals must be a Residuals, as step_forward makes it; got {checks.describe(residuals)}.")
    x, h, gates = residuals
    check_rows(params, h, x, cell)
    there = (cell.reset == "after", params.g_f is not None, params.g_h is not None)
    fits = isinstance(gates, Gates) and all(getattr(a, "shape", None) == h.shape for a in gates[:2])
    if not fits or there != tuple(a is not None for a in gates[2:]):
        raise ValueError("residuals must be those of step_forward for this cell and this batch; they are not.")
    check_features("dh_next", dh_next, "..., ", params, "b_h")
    checks.check_shape("dh_next", dh_next, h.shape, "the shape of the state")
    loop = turned(arrange(params, cell))
    dh, dz_f, dz_h = retreat(loop, h, gates, None, dh_next, cell)
    dparams, dx = collect(loop, x, h, gates, dz_f, dz_h, cell)
    return dparams, dh, dx
