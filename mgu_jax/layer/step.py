"""One step of a cell as public functions: ``step``, and ``step_forward`` with its backward, ``step_backward``."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from mgu_jax import checks
from mgu_jax.layer import mesh
from mgu_jax.layer.cell import Gates, advance, prepare, project, retreat, weight_gradients, with_transposes
from mgu_jax.layer.family import MGU, Cell, check_cell
from mgu_jax.layer.params import Params, check_features, check_params, check_resets, check_state


class Residuals(NamedTuple):
    """What ``step_forward`` keeps for ``step_backward``."""

    x: Array  # [..., D]
    h: Array  # [..., H], the state before the step
    gates: Gates


def step(
    params: Params,
    h: Array,
    x: Array,
    cell: Cell = MGU,
    *,
    reset: Array | None = None,
    reset_to: Array | None = None,
) -> Array:
    """The state h' [..., H] after one step from the state h [..., H] with the input x [..., D] (equations 1 to 3).

    Args:
        params: the layer's ``Params``.
        h: [..., H], the state before the step.
        x: [..., D].
        cell: the member of the family that params belongs to.
        reset: bool [...]; where true, the step starts from reset_to, whatever h holds.
        reset_to: [..., H]; zeros if ``None``.

    Raises:
        TypeError: an argument is not an array, or its dtype is not that of params.
        ValueError: the shapes do not fit each other, or reset_to without reset.
    """
    check_rows(params, h, x, cell)
    check_resets(reset, x.shape[:-1], "x", "reset")
    if reset_to is not None:
        check_state("reset_to", reset_to, x.shape[:-1], params, "x")
        if reset is None:
            raise ValueError(f"reset_to must be left out without reset; got {checks.describe(reset_to)}.")
    if reset is not None:
        h = jnp.where(reset[..., None], jnp.zeros_like(h) if reset_to is None else reset_to, h)
    return step_forward(params, h, x, cell)[0]


def step_forward(params: Params, h: Array, x: Array, cell: Cell = MGU) -> tuple[Array, Residuals]:
    """The state h' [..., H], as ``step`` returns it, and the ``Residuals`` that ``step_backward`` needs.

    Raises:
        TypeError, ValueError: as ``step``.
    """
    check_rows(params, h, x, cell)
    h_next, gates = advance(prepare(params, cell), h, project(params, x), cell)
    return h_next, Residuals(x, h, gates)


def step_backward(
    params: Params, residuals: Residuals, dh_next: Array, cell: Cell = MGU
) -> tuple[Params, Array, Array]:
    """(dparams, dh [..., H], dx [..., D]) from the cotangent dh_next [..., H] of the new state (equations 4 to 11).

    dparams is summed over the batch.

    Raises:
        TypeError: residuals is not a ``Residuals``, or dh_next is not an array of the dtype of params.
        ValueError: dh_next has not the shape of the state, or residuals visibly belong to another cell or batch.
    """
    if not isinstance(residuals, Residuals):
        raise TypeError(f"residuals must be a Residuals, as step_forward makes it; got {checks.describe(residuals)}.")
    x, h, gates = residuals
    check_rows(params, h, x, cell)
    _check_gates(gates, params, h, cell)
    check_features("dh_next", dh_next, "..., ", params, "b_h")
    checks.check_shape("dh_next", dh_next, h.shape, "the shape of the state")
    return mesh.automatic(partial(_backward, cell), (params, residuals, dh_next), _placed)


def _backward(cell: Cell, params: Params, residuals: Residuals, dh_next: Array) -> tuple[Params, Array, Array]:
    x, h, gates = residuals
    weights = with_transposes(prepare(params, cell))
    dh, dz_f, dz_h = retreat(weights, h, gates, None, dh_next, cell)
    dparams, dx = weight_gradients(weights, x, h, gates, dz_f, dz_h, cell)
    return dparams, dh, dx


def _placed(*arguments: Any) -> tuple[Params, PartitionSpec, PartitionSpec]:
    """How the results of ``step_backward`` are split on a mesh with explicit axes: as the arguments are."""
    params, residuals, _ = jax.tree.map(lambda a: PartitionSpec(*mesh.spec(a)), arguments)
    return params, residuals.h, residuals.x


def check_rows(params: Params, h: Any, x: Any, cell: Cell) -> None:
    """Raise TypeError or ValueError unless h [..., H] and x [..., D] fit each other and params."""
    check_cell(cell)
    check_params(params, cell)
    check_features("x", x, "..., ", params, "W_h")
    check_features("h", h, "..., ", params, "b_h")
    checks.check_shape("h", h, (*x.shape[:-1], h.shape[-1]), "the batch of x and the width of params")


def _check_gates(gates: Any, params: Params, h: Array, cell: Cell) -> None:
    """Raise ValueError unless the gates have the terms of the cell and the shape of h."""
    if isinstance(gates, Gates):
        of_the_batch = all(getattr(a, "shape", None) == h.shape for a in (gates.f, gates.c))
        present = tuple(a is not None for a in (gates.s_r, gates.norm_f, gates.norm_h))
        if of_the_batch and present == (cell.reset == "after", params.g_f is not None, params.g_h is not None):
            return
    raise ValueError("residuals must be those of step_forward for this cell and this batch; got others.")
