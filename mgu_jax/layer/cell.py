"""One step of a one-gate cell, and its backward pass, derived by hand.

The paper's cell (Zhou et al. 2016, arXiv 1603.09420, equations 6a to 6c) is the member ``MGU`` of the family:

    (1)  f  = sigmoid(x W_f + h U_f + b_f)
    (2)  c  = tanh(x W_h + r U_h + b_h)           r = f*h
    (3)  h' = (1 - f)*h + f*c

so f = 1 overwrites the state and f = 0 keeps it. The backward pass is given dh', the cotangent of h', and follows the
equations from the last to the first:

    (4)     dz_h = dh' * f * (1 - c^2)                     through (3) and the tanh of (2)
    (5)     dr   = dz_h U_h^T                              through (2)
    (6, 7)  dz_f = f*(1 - f) * [dh'*(c - h) + dr*h]        through (3) and r (6), and the sigmoid of (1) (7)
    (8)     dh   = dh'*(1 - f) + dr*f + dz_f U_f^T         through (3), r and (1)
    (9)     dx   = dz_f W_f^T + dz_h W_h^T                 through (1) and (2)
    (10)    dW_f = x^T dz_f    dU_f = h^T dz_f    db_f = sum dz_f
    (11)    dW_h = x^T dz_h    dU_h = r^T dz_h    db_h = sum dz_h

(6), the cotangent of f in brackets, and (7) are one line because the code multiplies each term of (6) by the slope
f*(1 - f) of the sigmoid before it multiplies by the state. Where the gate is saturated the slope is 0, and a cotangent
times a huge h would overflow first.

Over time, only (1) to (3) (``advance``) and (4) to (8) (``retreat``) have to run step by step. The products with x
(``project``) and (9) to (11) (``weight_gradients``) take any number of rows at once. The code's lines carry these
numbers, and ``dh_next`` is dh'.

The relatives of the MGU (``family.py``) change single terms, each in the line where the paper's term stands. A term
that a member lacks is ``None``, and ``add``, ``product`` and ``normalise`` pass ``None`` through. Five names are not
in the equations above:

    u           the share of the old state that (3) gives up: f, or 1 - f
    w           the share of the candidate that (3) writes in its place: u, or in members with a beta sigmoid(z + beta)
                where u = sigmoid(z). u and w are times alpha where only part of the update takes place
    seen        the state as the products see it: h, or h times the mask of recurrent dropout
    s_r         seen U_h + b_r, which members that reset after the product scale by f
    s_f, s_h    the sums in (1) and (2) before layer normalisation and bias
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mgu_jax.layer.family import Cell
from mgu_jax.layer.layer_norm import Normalised, normalise, normalise_backward
from mgu_jax.layer.params import Params, Term
from mgu_jax.layer.products import Products, like, transposed

# The candidate's activation, and its derivative as a function of its value.
_ACTIVATION = {"tanh": jnp.tanh, "relu": jax.nn.relu, "identity": lambda z: z}
SLOPE = {"tanh": lambda c: 1 - c * c, "relu": lambda c: (c > 0).astype(c.dtype), "identity": jnp.ones_like}


class InputTerms(NamedTuple):
    """What does not depend on the state; computed for many steps at once, before the loop."""

    xW_f: Term  # [..., H]; None where x does not feed the gate
    xW_h: Array  # [..., H]
    alpha: Array | None = None  # [..., H] or [..., 1]: how much of the update takes place; 0 keeps the state, None is 1


class Gates(NamedTuple):
    """What a step computes on its way to the new state, and the backward pass needs."""

    f: Array  # [..., H]
    c: Array  # [..., H]
    s_r: Array | None = None  # [..., H], of members that reset after the product
    norm_f: Normalised | None = None  # of members with layer normalisation
    norm_h: Normalised | None = None


class StepWeights(NamedTuple):
    """The weights as a loop over time uses them; they are the same at every step."""

    params: Params
    mask: Array | None = None  # [..., H], of recurrent dropout
    U: Term = None  # [U_f | U_h], [H, 2H], of members whose two products see the same rows
    # For the backward pass. Transposing inside the loop would make its products 1.2 times as slow.
    UT: Term = None
    U_fT: Term = None
    U_hT: Term = None


def add(*terms: Term) -> Term:
    """The sum of the terms that are present; ``None`` if all are absent."""
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


def masked(h: Term, mask: Array | None) -> Term:
    """h times the mask, if both are present."""
    return h if h is None or mask is None else h * like(mask, h)


def scaled(update: Array, alpha: Array | None) -> Array:
    """The part of an update that takes place."""
    return update if alpha is None else update * alpha


def shares(f: Array, alpha: Array | None, cell: Cell) -> tuple[Array, Array]:
    """(u, w): the share of the old state that is given up, and the share of the candidate that is written."""
    u = f if cell.update == "f" else 1 - f
    # For u = sigmoid(z), w is sigmoid(z + beta); from u alone, so that no z need be kept.
    w = u if cell.beta == 0 else u / (u + (1 - u) * math.exp(-cell.beta))
    return scaled(u, alpha), scaled(w, alpha)


def slope_through_3(f: Array, h: Array, c: Array, cell: Cell) -> Array:
    """dh'/dz_f through (3), for a whole update: f*(1 - f)*(c - h) in the paper's cell."""
    slope_f = f * (1 - f)
    if cell.beta == 0:
        change = slope_f * (c - h)  # (6, 7)
    else:
        _, w = shares(f, None, cell)
        change = w * (1 - w) * c - slope_f * h  # (6, 7) with a beta
    return change if cell.update == "f" else -change  # (6, 7)


def prepare(params: Params, cell: Cell, mask: Array | None = None) -> StepWeights:
    """The weights that ``advance`` uses."""
    return StepWeights(params, mask, jnp.concatenate([params.U_f, params.U_h], 1) if cell.joint else None)


def with_transposes(weights: StepWeights) -> StepWeights:
    """The same weights, and the transposes that ``retreat`` uses."""
    if weights.U is not None:
        return weights._replace(UT=transposed(weights.U))
    return weights._replace(U_fT=transposed(weights.params.U_f), U_hT=transposed(weights.params.U_h))


def project(params: Params, x: Array, alpha: Array | None = None, product: Products = Products()) -> InputTerms:
    """x W_f and x W_h for rows x [..., D]."""
    return InputTerms(product(x, params.W_f), product(x, params.W_h), alpha)


def advance(
    weights: StepWeights, h: Array, x: InputTerms, cell: Cell, product: Products = Products()
) -> tuple[Array, Gates]:
    """The new state h' [..., H], and the gates, for states h [..., H]."""
    p, seen = weights.params, masked(h, weights.mask)
    b_f, b_h, b_r = like(p.b_f, h), like(p.b_h, h), like(p.b_r, h)
    if cell.joint:
        hU_f, hU_h = jnp.split(product(seen, weights.U), 2, -1)
    else:
        hU_f = product(seen, p.U_f)
        hU_h = None if cell.reset == "before" else product(seen, p.U_h)

    s_f, norm_f = normalise(add(x.xW_f, hU_f), p.g_f)
    f = jax.nn.sigmoid(add(s_f, b_f))  # (1)
    s_r = None
    if cell.reset == "before":
        hU_h = product(f * seen, p.U_h)
    elif cell.reset == "after":
        s_r = add(hU_h, b_r)
        hU_h = f * s_r
    s_h, norm_h = normalise(add(x.xW_h, hU_h), p.g_h)
    c = _ACTIVATION[cell.activation](add(s_h, b_h))  # (2)
    u, w = shares(f, x.alpha, cell)
    return (1 - u) * h + w * c, Gates(f, c, s_r, norm_f, norm_h)  # (3)


def retreat(
    weights: StepWeights,
    h: Array,
    gates: Gates,
    alpha: Array | None,
    dh_next: Array,
    cell: Cell,
    product: Products = Products(),
) -> tuple[Array, Array, Array]:
    """(dh, dz_f, dz_h), [..., H] each, from the cotangent dh_next [..., H] of the new state; h is the state before."""
    p, seen = weights.params, masked(h, weights.mask)
    f, c, s_r, norm_f, norm_h = gates
    u, w = shares(f, alpha, cell)
    slope_f, slope_c = f * (1 - f), SLOPE[cell.activation](c)

    dz_h = dh_next * w * slope_c  # (4)
    ds_h = normalise_backward(dz_h, p.g_h, norm_h)
    dz_f = scaled(dh_next, alpha) * slope_through_3(f, h, c, cell)  # (6, 7)
    dseen, ds_r = None, ds_h  # where nothing scales s_r, it is a term of s_h
    if cell.reset == "before":
        dr = product(ds_h, weights.U_hT)  # (5)
        dz_f = dz_f + dr * slope_f * seen  # (6, 7) through r
        dseen = dr * f  # (8) through r
    elif s_r is not None:
        dz_f = dz_f + ds_h * slope_f * s_r  # (6, 7) of a reset after the product
        ds_r = ds_h * f
    ds_f = normalise_backward(dz_f, p.g_f, norm_f)
    if cell.joint:
        dseen = product(jnp.concatenate([ds_f, ds_r], -1), weights.UT)  # (8) through (1) and (2)
    elif cell.reset == "before":
        dseen = add(dseen, product(ds_f, weights.U_fT))  # (8) through (1)
    else:
        dseen = add(product(ds_r, weights.U_hT), product(ds_f, weights.U_fT))  # (8) through (1) and (2)
    return add(dh_next * (1 - u), masked(dseen, weights.mask)), dz_f, dz_h  # (8)


def weight_gradients(
    weights: StepWeights,
    x: Array,
    h: Array,
    gates: Gates,
    dz_f: Array,
    dz_h: Array,
    cell: Cell,
    product: Products = Products(),
) -> tuple[Params, Array]:
    """(dparams, dx [..., D]), where dparams is summed over the rows.

    The rows, of any number, are x [..., D], the states h [..., H] before each step, the gates, and dz_f and dz_h
    [..., H] as ``retreat`` gives them.
    """
    p, seen = weights.params, masked(h, weights.mask)
    ds_f = normalise_backward(dz_f, p.g_f, gates.norm_f)
    ds_h = normalise_backward(dz_h, p.g_h, gates.norm_h)
    dx = add(product(ds_h, transposed(p.W_h)), product(ds_f, transposed(p.W_f)))  # (9)
    r = gates.f * seen if cell.reset == "before" else seen  # the rows that U_h multiplies
    ds_r = ds_h * gates.f if cell.reset == "after" else ds_h

    def summed(dz: Array, b: Term) -> Term:
        return None if b is None else jnp.sum(dz.reshape(-1, dz.shape[-1]), 0)

    dparams = Params(
        W_f=product.weight(x, ds_f, p.W_f),  # (10)
        U_f=product.weight(seen, ds_f, p.U_f),  # (10)
        b_f=summed(dz_f, p.b_f),  # (10)
        W_h=product.weight(x, ds_h, p.W_h),  # (11)
        U_h=product.weight(r, ds_r, p.U_h),  # (11)
        b_h=summed(dz_h, p.b_h),  # (11)
        b_r=summed(ds_r, p.b_r),  # (11)
        g_f=None if gates.norm_f is None else summed(dz_f * gates.norm_f.n, p.g_f),  # (10)
        g_h=None if gates.norm_h is None else summed(dz_h * gates.norm_h.n, p.g_h),  # (11)
    )
    return dparams, dx
