"""Fixed and slow points of a layer whose input is held constant.

A state is fixed where the step F leaves it as it is. Its speed is q(h) = |F(h) - h|^2 / 2 (Sussillo and Barak 2013,
"Opening the black box"): zero at a fixed point, and small at a slow one, such as the ghost of two fixed points that
have just met. With A = dF/dh - I the gradient of q is A^T (F(h) - h), so a minimum of q is a fixed point or one where A
is singular. The search takes in each round the better one of two steps d, both with the exact Jacobian:

    A d = -(F(h) - h)                     Newton's, whose error squares from round to round near a fixed point
    (A^T A + m I) d = -A^T (F(h) - h)     Levenberg and Marquardt's, which for large m descends from anywhere

and neither, with a larger m, if q would not fall. Newton's step counts only if it is short, so that the search stays in
the neighbourhood of its start, and within ``Cell.bound``. So q never rises, and where no fixed point is near, the
search ends at a slow one.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from mgu_jax import checks
from mgu_jax.dynamics.arguments import check_factorised, check_least, split
from mgu_jax.dynamics.linear import closed_form, jacobian
from mgu_jax.layer import mesh
from mgu_jax.layer.cell import advance, prepare, project
from mgu_jax.layer.family import MGU, Cell, check_cell
from mgu_jax.layer.params import Params, check_features, check_params

_LEAST, _FIRST, _MOST = 1e-8, 1.0, 1e8  # the damping m
_SHORT = 0.2  # the largest change of a unit in a step of Newton's


class FixedPoints(NamedTuple):
    """M fixed or slow points, as NumPy arrays, in the order of the first starts that reached them."""

    states: Any  # [M, H]
    speed: Any  # [M], q = |F(h) - h|^2 / 2
    fixed: Any  # bool [M], whether q is zero but for rounding; otherwise the point is slow
    eigenvalues: Any  # complex [M, H], of dF/dh, the largest first
    stable: Any  # bool [M], fixed and with all eigenvalues inside the unit circle
    jacobian: Any  # [M, H, H], dF/dh
    reached: Any  # [M], the number of starts that ended here


def fixed_points(
    params: Params,
    x: Array,
    starts: Array,
    cell: Cell = MGU,
    *,
    max_speed: float | None = None,
    apart: float = 1e-3,
    rounds: int = 200,
) -> FixedPoints:
    """The ``FixedPoints`` that the searches from all starts reach, each once.

    The searches run together under ``vmap``; ``newton`` is the same search for use under ``jit`` and ``vmap``. Each
    round costs about 3 H^3 multiplications for a start, and few starts need more than 20 rounds. Points that no start
    reaches are not found: take many starts, such as states that the layer passes through, with noise added.

    Args:
        params: the layer's ``Params``.
        x: [D], the input that is held constant.
        starts: [N, H].
        cell: the member of the family that params belongs to.
        max_speed: also return slow points of at most this speed q; ``None`` returns fixed points only.
        apart: two ends are one point if no unit differs by more than this. The end with the lower speed represents it.
        rounds: the largest number of rounds of a search.

    Raises:
        TypeError: an argument is not an array of known numbers, or its dtype is not that of params, which must be
            float32 or float64.
        ValueError: the shapes do not fit each other, or max_speed, apart or rounds is out of bounds.
    """
    _check(params, x, starts, cell, rounds)
    if starts.ndim != 2:
        raise ValueError(f"starts must have shape [N, H]; got {list(starts.shape)}.")
    for name, value in (("params", jax.tree.leaves(params)), ("x", [x]), ("starts", [starts])):
        if not all(map(checks.is_concrete, value)):
            raise TypeError(f"{name} must be known numbers (use newton under jit and vmap); got traced ones.")
    for name, value in (("max_speed", max_speed), ("apart", apart)):
        if value is not None:
            check_least(name, value)
    states, speed, fixed = map(np.asarray, newton(params, x, starts, cell, rounds=rounds))
    kept = np.flatnonzero(fixed if max_speed is None else fixed | (speed <= max_speed))
    chosen, reached = _merged(states[kept], speed[kept], apart)
    chosen = kept[chosen]
    states = states[chosen]
    rows = jnp.broadcast_to(jnp.asarray(x), (len(states), x.shape[0]))
    jacobians = np.asarray(jacobian(params, jnp.asarray(states), rows, cell)[0])
    values = np.linalg.eigvals(jacobians.astype(np.float64)).astype(complex)
    values = np.take_along_axis(values, np.argsort(-np.abs(values), -1, kind="stable"), -1)
    stable = fixed[chosen] & (np.abs(values[:, 0]) < 1)
    return FixedPoints(states, speed[chosen], fixed[chosen], values, stable, jacobians, reached)


def newton(
    params: Params, x: Array, starts: Array, cell: Cell = MGU, *, rounds: int = 200
) -> tuple[Array, Array, Array]:
    """(states [..., H], speed [...], fixed [...]), the ends of the searches from starts [..., H], without merging.

    A pure function for ``jit`` and ``vmap``; the arguments are those of ``fixed_points``.

    Raises:
        TypeError, ValueError: as ``fixed_points``.
    """
    _check(params, x, starts, cell, rounds)
    run = partial(_newton, cell=cell, rounds=int(rounds))
    return mesh.automatic(run, (params, x, starts), lambda _, x, starts: split(starts))


@partial(jax.jit, static_argnames=("cell", "rounds"))
def _newton(params: Params, x: Array, starts: Array, cell: Cell, rounds: int) -> tuple[Array, Array, Array]:
    weights, inputs, H = prepare(params, cell), project(params, x), starts.shape[-1]

    def rounding(h: Array) -> Array:
        """The speed that an error of some last places in each unit of F makes."""
        error = 8 * jnp.finfo(h.dtype).eps * jnp.maximum(1, jnp.max(jnp.abs(h)))
        return H * error**2 / 2

    def move(h: Array) -> tuple[Array, Any]:
        h_next, gates = advance(weights, h, inputs, cell)
        return h_next - h, gates

    def speed_of(h: Array) -> Array:
        return jnp.sum(move(h)[0] ** 2) / 2

    def improve(search: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        h, q, damping, done = search
        g, gates = move(h)
        eye = jnp.eye(H, dtype=h.dtype)
        A = closed_form(params, h, gates, cell)[0] - eye
        # One stack of two systems: XLA's CPU backend can wait for ever for two batched factorisations of one program.
        systems = jnp.stack([A, A.T @ A + damping * eye])
        steps = jnp.linalg.solve(systems, -jnp.stack([g, A.T @ g])[..., None])[..., 0]
        ends = jnp.where(jnp.isfinite(steps), h[None] + steps, h[None])
        if cell.bound is not None:  # no fixed point lies outside
            ends = jnp.clip(ends, -cell.bound, cell.bound)
        speeds = jax.vmap(speed_of)(ends)
        short = jnp.stack([jnp.max(jnp.abs(steps[0])) <= _SHORT, jnp.asarray(True)])
        speeds = jnp.where(jnp.isfinite(speeds) & short, speeds, jnp.inf)
        best = jnp.argmin(speeds)
        better = speeds[best] < q
        damping = jnp.clip(jnp.where(better, damping / 4, damping * 8), _LEAST, _MOST)
        done = (~better & ((q <= rounding(h)) | (damping >= _MOST))) | (speeds[best] == 0)
        return jnp.where(better, ends[best], h), jnp.where(better, speeds[best], q), damping, done

    def search(h: Array) -> tuple[Array, Array, Array]:
        def unfinished(state: Any) -> Array:
            return (state[0] < rounds) & ~state[1][-1]

        first = mesh.vary_alike((h, speed_of(h), jnp.asarray(_FIRST, h.dtype), jnp.asarray(False)))
        _, (h, q, *_) = lax.while_loop(unfinished, lambda s: (s[0] + 1, improve(s[1])), (0, first))
        return h, q, q <= rounding(h)

    flat = starts.reshape(-1, H)
    h, q, fixed = jax.vmap(search)(flat)
    batch = starts.shape[:-1]
    return h.reshape(starts.shape), q.reshape(batch), fixed.reshape(batch)


def _merged(states: np.ndarray, speed: np.ndarray, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """The index of each point's end of lowest speed, and the number of ends there, in the order of the first ends."""
    chosen: list[int] = []
    group = np.zeros(len(states), int)
    for i in np.argsort(speed, kind="stable"):
        near = np.flatnonzero(np.abs(states[chosen] - states[i]).max(-1, initial=0) <= apart)
        group[i] = near[0] if near.size else len(chosen)
        if not near.size:
            chosen.append(int(i))
    first = [int(np.flatnonzero(group == k)[0]) for k in range(len(chosen))]
    order = np.argsort(first)
    return np.array(chosen, int)[order], np.bincount(group, minlength=len(chosen))[order]


def _check(params: Params, x: Any, starts: Any, cell: Cell, rounds: Any) -> None:
    check_cell(cell)
    D, _ = check_params(params, cell)
    check_factorised(params)
    check_features("x", x, "", params, "W_h")
    checks.check_shape("x", x, (D,), "one input, held constant")
    check_features("starts", starts, "..., ", params, "b_h")
    checks.check_size("rounds", rounds)
