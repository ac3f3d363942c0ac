"""What the last state of a sequence owes to each earlier state and input, and how long each unit keeps what it holds.

The derivatives dh_T/dh_t and dh_T/dx_t are products of all Jacobians in between. One reverse pass by equations (4) to
(9) and (13), with the H unit vectors as cotangents of h_T, gives them for all t, and only their norms are kept.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mgu_jax import checks
from mgu_jax.dynamics.arguments import checked_run, split
from mgu_jax.layer import mesh
from mgu_jax.layer.bptt import Plan, forward_loop
from mgu_jax.layer.cell import Gates, add, prepare, project, retreat, shares, with_transposes
from mgu_jax.layer.family import MGU, Cell
from mgu_jax.layer.layer_norm import normalise_backward
from mgu_jax.layer.params import Params
from mgu_jax.layer.products import Products, transposed


class Memory(NamedTuple):
    """What a layer remembers of a sequence; see ``memory``."""

    states: Any  # [T, ...], the norm of dy/dh_t, for the state after each step; y is h_T, or probe h_T
    inputs: Any  # [T, ...], the norm of dy/dx_t
    kept: Any  # [T, ..., H], the share 1 - f of its old state that each unit keeps in each step
    time_constants: Any  # [..., H], steps in which a unit keeps 1/e of its state, by the geometric mean of kept


def memory(params: Params, xs: Array, h0: Array | None = None, probe: Array | None = None, cell: Cell = MGU) -> Memory:
    """The ``Memory`` of a sequence: how much its last state depends on every earlier state and input.

    Without a probe, ``states`` are the Frobenius norms of dh_T/dh_t, [H, H]: the square root of H at t = T, and from
    there to the past as large as an average direction of change is carried on. It takes H cotangents a step, 2 H^3
    multiplications. With a probe of P rows, y = probe h_T, and a step takes 2 P H^2: use it for what a readout sees,
    such as ``probe=W_y[:, 3]`` for one output or ``probe=W_y.T`` for all.

    The time constant of a unit is -1 over the mean of log(1 - f_t), or of log(f_t) for a member with Flax's sign. It
    counts only what the gate keeps; what the candidate brings back, from this unit and others, is in ``states``.

    Args:
        params: the layer's ``Params``.
        xs: [T, ..., D], the inputs, with T at least 1.
        h0: [..., H], the state before the first step; zeros if ``None``.
        probe: [H] or [P, H], the same for all sequences; ``None`` for all units.
        cell: the member of the family that params belongs to.

    Raises:
        TypeError: an argument is not an array, or its dtype is not that of params.
        ValueError: the shapes do not fit each other.
    """
    h0 = checked_run(params, xs, h0, cell)
    H = h0.shape[-1]
    if probe is None:
        probe = jnp.eye(H, dtype=h0.dtype)
    checks.check_array("probe", probe, checks.dtype_of(params.W_h), "the dtype of params")
    if probe.ndim not in (1, 2) or probe.shape[-1] != H:
        raise ValueError(f"probe must have shape [{H}] or [P, {H}] (the units of params); got {list(probe.shape)}.")
    run, arguments = partial(_memory, cell=cell), (params, xs, h0, probe.reshape(-1, H))
    return mesh.automatic(run, arguments, _placed)


def _placed(params: Params, xs: Array, h0: Array, probe: Array) -> Memory:
    """How the results are split on a mesh with explicit axes: as xs and h0 are."""
    batch, of_steps = split(xs[0], h0), split(xs[0], h0, leading=1)
    return Memory(of_steps, of_steps, of_steps, batch)


@partial(jax.jit, static_argnames="cell")
def _memory(params: Params, xs: Array, h0: Array, probe: Array, cell: Cell) -> Memory:
    params, xs, h0, probe = mesh.vary_alike((params, xs, h0, probe))
    weights, product = with_transposes(prepare(params, cell)), Products()
    _, hs, gates = forward_loop(Plan(cell), weights, project(params, xs), h0, None, None)
    before = jnp.concatenate([h0[None], hs[:-1]])

    def norm(rows: Array) -> Array:
        largest = jnp.max(jnp.abs(rows), (-2, -1), keepdims=True)  # the square of a small number may be zero
        rows = rows / jnp.where(largest > 0, largest, 1)
        return largest[..., 0, 0] * jnp.sqrt(jnp.sum(rows * rows, (-2, -1)))

    def body(dh: Array, rows: tuple[Array, Gates]) -> tuple[Array, tuple[Array, Array]]:
        h, gates = jax.tree.map(lambda a: a[..., None, :], rows)  # [..., 1, H]: the same for all cotangents
        dh_before, dz_f, dz_h = retreat(weights, h, gates, None, dh, cell, product)
        ds_f = normalise_backward(dz_f, params.g_f, gates.norm_f)
        ds_h = normalise_backward(dz_h, params.g_h, gates.norm_h)
        dx = add(product(ds_h, transposed(params.W_h)), product(ds_f, transposed(params.W_f)))
        return dh_before, (norm(dh), norm(dx))

    dh_last = jnp.broadcast_to(probe, (*h0.shape[:-1], *probe.shape))
    _, (states, inputs) = lax.scan(body, dh_last, (before, gates), reverse=True)
    kept = 1 - shares(gates.f, None, cell)[0]
    time_constants = 1 / jnp.abs(jnp.mean(jnp.log(kept), 0))
    return Memory(states, inputs, kept, time_constants)
