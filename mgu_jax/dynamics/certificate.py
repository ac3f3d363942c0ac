"""A certificate of stability: from any two states, with the same inputs, the states meet exponentially.

This is incremental input-to-state stability. Sufficient conditions on the weights of an MGU for it are due to De Carli,
Previtali, Mazzoleni and Previdi (2026, arXiv 2603.03017). The condition here is derived as follows, for every member of
the family with bounded states, without layer normalisation and with beta = 0.

Assume |x_d| <= inputs and |h_i| <= m_i, where m bounds the candidate, |c_i| <= c_i^+ <= m_i: m = 1 for tanh. The new
state is a mixture of h and c, so it obeys the same bounds, and with them (1) bounds the gate, f^- <= f <= f^+. Write g
for the largest f*(1 - f) in that range. Row i of the Jacobian (``linear``) is (1 - f_i) e_i + f_i R_i, where

    (20)  |R_ij| <= B_ij = (1 - f_i^-)*(c_i^+ + m_i)*|U_f|_ji + sum_k |U_h|_ki*(f_k^+*[k = j] + m_k*g_k*|U_f|_jk)

since the slope of the candidate is at most 1. For Flax's sign, the share 1 - f of the candidate takes the place of f,
except in the last sum, which is the reset. Take any weights w > 0 and measure a difference of two states by
|d| = max_i |d_i|/w_i. Then |R d| <= gain*|d| with

    (21)  gain = max_i (B w)_i/w_i        which is least for the eigenvector of B, and then its largest eigenvalue,

and a unit of the difference after a step is at most ((1 - f_i) + f_i*gain) times |d|. So if gain < 1, two states come
closer in every step:

    (22)  |d_t| <= rate*|d_{t-1}|         rate = 1 - min_i f_i^- * (1 - gain) < 1

If the inputs differ too, by at most e in every feature, a step adds at most f_i*C_i*e to unit i, where C_i is the sum
of (20) over the features d, with |W_f|_d in the place of |U_f|_j, and |W_h|_di in the place of |U_h|_ki*f_k^+. Then

    (23)  |d_t| <= rate^t*|d_0| + input_gain*e        input_gain = max_i (C_i/w_i) / (1 - gain)

The mean value theorem makes this exact for any distance: the bounds hold on a box, which contains the line between the
two states. The certificate is sufficient and not necessary: a layer without it may be stable.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from mgu_jax import checks
from mgu_jax.dynamics.arguments import check_least
from mgu_jax.layer.family import MGU, Cell, check_cell
from mgu_jax.layer.params import Params, Term, check_params

_ROUNDS = 50  # of the power iteration for w, which is valid after any number of them


class Stability(NamedTuple):
    """What ``stability`` can guarantee for |x_d| <= inputs and |h_i| <= bound_i; the rest is in its docstring."""

    stable: Any  # bool: gain < 1 and rate < 1, so that (22) and (23) hold
    gain: Any  # of (21); 1 is the limit
    rate: Any  # of (22): the share of a difference of states that a step leaves, at most
    input_gain: Any  # of (23); infinite without a guarantee
    weights: Any  # [H], w: the norm of (22) and (23) is max |d_i|/w_i; the largest is 1
    bound: Any  # [H], m: a state within it stays within it


def stability(params: Params, cell: Cell = MGU, *, inputs: float | Array | None = 1.0) -> Stability:
    """The ``Stability`` of a layer: a guarantee that it forgets its initial state, for any inputs within bounds.

    If ``stable``, two runs with the same inputs come closer by ``rate`` or faster in every step, in the norm
    max |d_i|/weights_i, whatever the states are at the start; so there is one fixed point for each constant input, no
    chaos, and no dependence on the distant past. If not, nothing is known. It takes one product of H x H matrices and
    50 of such a matrix and a vector, and runs under ``jit``, ``vmap`` and ``grad`` too.

    Args:
        params: the layer's ``Params``.
        cell: the member of the family that params belongs to.
        inputs: the bound of |x|, one number or [D], one for each feature. ``None`` for any inputs, which is possible
            only if the gate does not see them: inputs that close the gate stop all forgetting.

    Raises:
        TypeError: params is not a ``Params`` of one dtype.
        ValueError: a cell with layer normalisation, with a beta, or whose states have no bound (relu or identity in a
            candidate that sees the state); inputs is negative, of another shape, or ``None`` where they must be
            bounded.
    """
    inputs = _checked(params, cell, inputs)
    return _stability(params, inputs, cell)


def stability_penalty(
    params: Params, cell: Cell = MGU, *, inputs: float | Array | None = 1.0, margin: float | Array = 0.05
) -> Array:
    """A number that is zero if gain <= 1 - margin (equation 21), and whose gradient leads there; add it to a loss.

    It is the sum over the units of max(0, (B w)_i/w_i - (1 - margin)), with w as ``stability`` finds it, held constant.
    A margin above 0 leaves room for the optimiser's last steps; check the result by ``stability``.

    Args:
        params, cell, inputs: as in ``stability``.
        margin: how far below 1 the gain shall come.

    Raises:
        TypeError, ValueError: as ``stability``; or margin is not a number of at least 0.
    """
    inputs = _checked(params, cell, inputs)
    check_least("margin", margin)
    return _penalty(params, inputs, jnp.asarray(margin, checks.dtype_of(params.W_h)), cell)


@partial(jax.jit, static_argnames="cell")
def _stability(params: Params, inputs: Array | None, cell: Cell) -> Stability:
    B, C, f_low, m = _bounds(params, inputs, cell)
    w, ratios = _scaled_rows(B)
    gain = jnp.max(ratios)
    rate = jnp.max(1 - f_low * (1 - gain))
    stable = (gain < 1) & (rate < 1)
    input_gain = jnp.where(stable, jnp.max(C / w) / jnp.where(stable, 1 - gain, 1), jnp.inf)
    return Stability(stable, gain, rate, input_gain, w, m)


@partial(jax.jit, static_argnames="cell")
def _penalty(params: Params, inputs: Array | None, margin: Array, cell: Cell) -> Array:
    return jnp.sum(jax.nn.relu(_scaled_rows(_bounds(params, inputs, cell)[0])[1] - (1 - margin)))


def _scaled_rows(B: Array) -> tuple[Array, Array]:
    """w [H] and (B w)_i/w_i [H]: near the eigenvector, but valid for any w > 0."""
    fixed = lax.stop_gradient(B)

    def iterate(_: Any, w: Array) -> Array:
        w = w + fixed @ w  # the same eigenvector as B, and no cycles
        return jnp.maximum(w / jnp.max(w), 1e-3)  # every unit keeps some weight

    w = lax.fori_loop(0, _ROUNDS, iterate, jnp.ones(len(B), B.dtype))
    return w, B @ w / w


def _bounds(params: Params, inputs: Any, cell: Cell) -> tuple[Array, Array, Array, Array]:
    """B [H, H], C [H], f^- [H] and m [H] of equations (20) and (23); for the share u of the candidate, f or 1 - f."""
    p = params
    H, dtype = p.b_h.shape[0], p.W_h.dtype
    zero = jnp.zeros(H, dtype)

    def size(W: Term) -> Array:
        """|W| as a matrix [features, H]; zeros for a term that the member lacks."""
        if W is None:
            return jnp.zeros((H, H), dtype)
        return jnp.diag(jnp.abs(W)) if W.ndim == 1 else jnp.abs(W)

    U_f, U_h, W_h = size(p.U_f), size(p.U_h), jnp.abs(p.W_h)
    W_f = jnp.zeros_like(W_h) if p.W_f is None else jnp.abs(p.W_f)

    def reach(m: Array) -> tuple[Array, Array]:
        """The least and the largest f."""
        width = m @ U_f + (zero if p.W_f is None else inputs @ W_f)
        b_f = zero if p.b_f is None else p.b_f
        return jax.nn.sigmoid(b_f - width), jax.nn.sigmoid(b_f + width)

    def candidate(m: Array, f_high: Array) -> Array:
        """The bound of |z_h|, before the activation."""
        through_h = (f_high * m) @ U_h if cell.reset == "before" else m @ U_h
        if cell.reset == "after":
            through_h = f_high * (through_h + jnp.abs(p.b_r))
        return jnp.abs(p.b_h) + inputs @ W_h + through_h

    if cell.activation == "tanh":
        m = jnp.ones(H, dtype)
        low, high = reach(m)
        c = m if inputs is None else jnp.tanh(candidate(m, high))
    else:  # the candidate does not see the state
        m = c = candidate(zero, zero)
        low, high = reach(m)

    # The largest f*(1 - f) in the range, which is that of the f nearest to 1/2.
    nearest = jnp.clip(jnp.asarray(0.5, dtype), low, high)
    slope = nearest * (1 - nearest)
    u_low = low if cell.update == "f" else 1 - high

    through_gate = (1 - u_low) * (c + m)
    B, C = through_gate[:, None] * U_f.T, through_gate * jnp.sum(W_f, 0)  # through u
    if cell.reset == "before":
        B = B + U_h.T * high[None] + (U_h.T * (m * slope)[None]) @ U_f.T
        C = C + U_h.T @ (m * slope * jnp.sum(W_f, 0))
    elif cell.reset == "after":
        s_r = slope * (m @ U_h + jnp.abs(p.b_r))
        B = B + high[:, None] * U_h.T + s_r[:, None] * U_f.T
        C = C + s_r * jnp.sum(W_f, 0)
    else:
        B = B + U_h.T
    return B, C + jnp.sum(W_h, 0), u_low, m


def _checked(params: Params, cell: Cell, inputs: Any) -> Array | None:
    """inputs as [D], or ``None``."""
    check_cell(cell)
    D, _ = check_params(params, cell)
    if cell.layer_norm:
        raise ValueError(f"cell must be without layer normalisation, for which no bound is derived; got {cell}.")
    if cell.beta != 0:
        raise ValueError(f"cell must have beta=0, for which alone the condition is derived; got {cell}.")
    if cell.activation != "tanh" and "h" in cell.candidate:
        raise ValueError(f"cell must have bounded states: tanh, or a candidate that does not see them; got {cell}.")
    if inputs is None:
        if "x" in cell.gate or cell.activation != "tanh":
            raise ValueError(
                "inputs must be bounded unless the gate does not see them and the activation is tanh; got None."
            )
        return None
    checks.check_numbers("inputs", inputs, D)
    if checks.is_concrete(inputs) and not np.all((np.asarray(inputs) >= 0) & np.isfinite(np.asarray(inputs))):
        raise ValueError(f"inputs must be finite and at least 0; got {checks.describe(inputs)}.")
    return jnp.broadcast_to(jnp.asarray(inputs, checks.dtype_of(params.W_h)), (D,))
