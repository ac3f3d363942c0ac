"""One step, linearised: dh'/dh and dh'/dx in closed form, and products with them.

Row i of the Jacobian is the cotangent dh of the state where the cotangent dh' of the new state is the unit vector e_i.
So equations (4) to (9) of ``layer.cell``, given the identity as dh', are the Jacobian. The identity makes (4) the
diagonal matrix K = diag(f*(1 - c^2)), and a product with a diagonal matrix only scales rows. What remains is

    (5)     R = K U_h^T
    (6, 7)  Q = diag(f*(1 - f)*(c - h)) + R diag(f*(1 - f)*h)
    (8)     dh'/dh = diag(1 - f) + R diag(f) + Q U_f^T
    (9)     dh'/dx = K W_h^T + Q W_f^T

where Q U_f^T, with H^3 multiplications, is the only product. If a member resets after the product or not at all, Q is
diagonal too, and nothing is left but sums of scaled weights, H^2. One backward pass for each unit, as ``jax.jacrev``
makes them, takes 2 H^3 for every dense member. Layer normalisation fills K and Q, and then costs a product for each.

In the other direction, a tangent is a change v of the state and w of the input, small enough for the step to be linear.
Through (1) to (3) it becomes

    (16)  t_f  = f*(1 - f) * (v U_f + w W_f)
    (17)  t_r  = f*v + h*t_f
    (18)  t_c  = (1 - c^2) * (t_r U_h + w W_h)
    (19)  t_h' = (1 - f)*v + (c - h)*t_f + f*t_c        which is dh'/dh v + dh'/dx w

The relatives of the MGU change the same terms as in ``layer.cell``.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mgu_jax import checks
from mgu_jax.dynamics.arguments import split
from mgu_jax.layer import mesh
from mgu_jax.layer.cell import SLOPE, Gates, add, advance, prepare, project, shares, slope_through_3
from mgu_jax.layer.family import MGU, Cell
from mgu_jax.layer.layer_norm import Normalised, normalise_backward, normalise_tangent
from mgu_jax.layer.params import Params, Term
from mgu_jax.layer.products import Products, like
from mgu_jax.layer.step import check_rows, step_backward, step_forward


def jacobian(params: Params, h: Array, x: Array, cell: Cell = MGU) -> tuple[Array, Array]:
    """(dh'/dh [..., H, H], dh'/dx [..., H, D]) of one step, in closed form; the first axis is that of h'.

    A state takes H^2 (H + D) multiplications for dense members that reset before the product, and about 3 H (H + D) for
    the others. Under ``jit``, the one of the two that is not used costs nothing.

    Args:
        params: the layer's ``Params``, such as ``model_params.layers[0]`` of a trained model.
        h: [..., H], the state before the step.
        x: [..., D], the input.
        cell: the member of the family that params belongs to.

    Raises:
        TypeError: an argument is not an array, or its dtype is not that of params.
        ValueError: the shapes do not fit each other.
    """
    check_rows(params, h, x, cell)
    return mesh.automatic(partial(_jacobian, cell=cell), (params, h, x), lambda _, h, x: split(h, x))


def jvp(params: Params, h: Array, x: Array, v: Array, w: Array | None = None, cell: Cell = MGU) -> Array:
    """dh'/dh v + dh'/dx w, [..., H], without the Jacobian (equations 16 to 19); about 2 H (H + D) multiplications.

    Args:
        params, h, x, cell: as in ``jacobian``.
        v: [..., H], the change of the state.
        w: [..., D], the change of the input; ``None`` for no change.

    Raises:
        TypeError, ValueError: as ``jacobian``.
    """
    check_rows(params, h, x, cell)
    _check_like("v", v, h, "h")
    if w is not None:
        _check_like("w", w, x, "x")
    return mesh.automatic(partial(_jvp, cell=cell), (params, h, x, v, w), lambda _, h, x, *__: split(h, x))


def vjp(params: Params, h: Array, x: Array, dh_next: Array, cell: Cell = MGU) -> tuple[Array, Array]:
    """(dh_next dh'/dh [..., H], dh_next dh'/dx [..., D]), without the Jacobian, by equations (4) to (9).

    Args:
        params, h, x, cell: as in ``jacobian``.
        dh_next: [..., H], the cotangent of the new state.

    Raises:
        TypeError, ValueError: as ``jacobian``.
    """
    check_rows(params, h, x, cell)
    _check_like("dh_next", dh_next, h, "h")
    return mesh.automatic(partial(_vjp, cell=cell), (params, h, x, dh_next), lambda _, h, x, __: split(h, x))


def closed_form(params: Params, h: Array, gates: Gates, cell: Cell) -> tuple[Array, Array]:
    """``jacobian`` for the gates of the step from h."""
    p, f, c = params, gates.f, gates.c
    (u, w), slope_f = shares(f, None, cell), f * (1 - f)
    K = _normalised(Diagonal(w * SLOPE[cell.activation](c)), p.g_h, gates.norm_h)  # (4)
    Q = Diagonal(slope_through_3(f, h, c, cell))  # (6, 7) through (3)
    if cell.reset == "before":
        R = _times(K, p.U_h)  # (5)
        Q = _sum(Q, _scaled(R, slope_f * h))  # (6, 7) through r
        S = _scaled(R, f)  # (8) through r
    elif gates.s_r is not None:
        Q = _sum(Q, _scaled(K, slope_f * gates.s_r))  # (6, 7) of a reset after the product
        S = _times(_scaled(K, f), p.U_h)
    else:
        S = _times(K, p.U_h)
    Q = _normalised(Q, p.g_f, gates.norm_f)
    dh = _sum(Diagonal(1 - u), S, _times(Q, p.U_f))  # (8)
    return _full(dh), _full(_sum(_times(K, p.W_h), _times(Q, p.W_f)))  # (9)


def tangents(params: Params, h: Array, gates: Gates, cell: Cell, v: Array, w: Array | None = None) -> Array:
    """t_h' [..., N, H] of N tangents v [..., N, H] and w [..., N, D] for each state h [..., H], by (16) to (19)."""
    p, product = params, Products()

    def scaled(a: Array, t: Term) -> Term:
        return None if t is None else a[..., None, :] * t

    def normalised(t: Term, gain: Term, norm: Normalised | None) -> Term:
        return t if t is None else normalise_tangent(t, gain, _for_rows(norm))

    def through(W: Term) -> Term:
        return None if w is None else product(w, W)

    f, c = gates.f, gates.c
    given_up, written = shares(f, None, cell)
    t_z_f = normalised(add(product(v, p.U_f), through(p.W_f)), p.g_f, gates.norm_f)
    t_f = scaled(f * (1 - f), t_z_f)  # (16)
    if cell.reset == "before":
        hU_h = product(add(scaled(f, v), scaled(h, t_f)), p.U_h)  # (17)
    else:
        hU_h = product(v, p.U_h)
        if gates.s_r is not None:
            hU_h = add(scaled(f, hU_h), scaled(gates.s_r, t_f))  # (17) of a reset after the product
    t_z_h = normalised(add(hU_h, through(p.W_h)), p.g_h, gates.norm_h)
    from_gate = scaled(slope_through_3(f, h, c, cell), t_z_f)
    return add(scaled(1 - given_up, v), from_gate, scaled(written * SLOPE[cell.activation](c), t_z_h))  # (18, 19)


@partial(jax.jit, static_argnames="cell")
def _jacobian(params: Params, h: Array, x: Array, cell: Cell) -> tuple[Array, Array]:
    return closed_form(params, h, advance(prepare(params, cell), h, project(params, x), cell)[1], cell)


@partial(jax.jit, static_argnames="cell")
def _jvp(params: Params, h: Array, x: Array, v: Array, w: Array | None, cell: Cell) -> Array:
    _, gates = advance(prepare(params, cell), h, project(params, x), cell)
    return tangents(params, h, gates, cell, v[..., None, :], None if w is None else w[..., None, :])[..., 0, :]


@partial(jax.jit, static_argnames="cell")
def _vjp(params: Params, h: Array, x: Array, dh_next: Array, cell: Cell) -> tuple[Array, Array]:
    return step_backward(params, step_forward(params, h, x, cell)[1], dh_next, cell)[1:]


def _check_like(name: str, value: Array, other: Array, of: str) -> None:
    checks.check_array(name, value, checks.dtype_of(other), f"the dtype of {of}")
    checks.check_shape(name, value, other.shape, f"the shape of {of}")


class Diagonal(NamedTuple):
    """Diagonal matrices [..., H, H]."""

    entries: Array  # [..., H]


Matrix = Diagonal | Array


def _full(K: Matrix) -> Array:
    if not isinstance(K, Diagonal):
        return K
    H = K.entries.shape[-1]
    return K.entries[..., None] * jnp.broadcast_to(jnp.eye(H, dtype=K.entries.dtype), (*K.entries.shape, H))


def _sum(*terms: Matrix | None) -> Matrix:
    present = [term for term in terms if term is not None]
    if all(isinstance(term, Diagonal) for term in present):
        return Diagonal(add(*(term[0] for term in present)))
    return add(*map(_full, present))


def _scaled(K: Matrix, a: Array) -> Matrix:
    """K diag(a), for a [..., H]."""
    return Diagonal(K.entries * a) if isinstance(K, Diagonal) else K * a[..., None, :]


def _times(K: Matrix, W: Term) -> Term:
    """K W^T, or K diag(W) for a diagonal W [H]; ``None`` for ``None``."""
    if W is None:
        return None
    if W.ndim == 1:
        return _scaled(K, like(W, K.entries if isinstance(K, Diagonal) else K[..., 0, :]))
    if isinstance(K, Diagonal):
        return K.entries[..., None] * jnp.broadcast_to(W.T, (*K.entries.shape, W.shape[0]))
    return jnp.matmul(K, W.T)


def _normalised(K: Matrix, gain: Term, norm: Normalised | None) -> Matrix:
    """The rows of K, cotangents of z, as cotangents of s (``layer.layer_norm``)."""
    return K if norm is None else normalise_backward(_full(K), gain, _for_rows(norm))


def _for_rows(norm: Normalised | None) -> Normalised | None:
    """The same, for several rows [..., N, H] of each state."""
    return norm and Normalised(norm.n[..., None, :], norm.inverse[..., None, :])
