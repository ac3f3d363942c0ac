"""The family as a cell of Equinox, and a layer that runs ``scan`` (extra ``equinox``).

    cell = MGUCell(28, 100, key=key)   # cell(input [D], hidden [H]) -> hidden [H]
    layer = MGU(cell)                  # layer(input [T, D]) -> (hs [T, H], hidden [H])

Both take one example, and ``jax.vmap`` makes a batch of them, as everywhere in Equinox.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from mgu_jax.extras import require
from mgu_jax.interop._arguments import check_options, check_ours
from mgu_jax.layer.cell import step
from mgu_jax.layer.family import MGU as PAPERS
from mgu_jax.layer.family import Cell, check_cell
from mgu_jax.layer.initial import init
from mgu_jax.layer.params import Params, check_features, check_lengths, check_params, check_resets, check_state
from mgu_jax.sequence import scan

eqx = require("equinox", "equinox")


def _check_one(name: str, value: Any, shape: str) -> None:
    """One example: a batch would pass as time, or as a batch of time first."""
    if jnp.ndim(value) != shape.count(",") + 1:
        raise ValueError(f"{name} must be one example, {shape}, and a batch goes by jax.vmap; got {list(value.shape)}.")


class MGUCell(eqx.Module):
    """One step of a member of the family.

    Args:
        input_size: D.
        hidden_size: H.
        cell: the member.
        dtype: of what is drawn; ``None`` is float64 where x64 is enabled, else float32.
        key: to draw with.
        params: ``Params`` to begin with, in the place of key.
        options: as ``mgu_jax.init`` takes them, such as ``forget_bias``, in the paper's sign: -1 remembers.

    Raises:
        TypeError, ValueError: as ``mgu_jax.init`` raises them, or params that are not of this cell and these sizes.
    """

    params: Params
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)
    member: Cell = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        cell: Cell = PAPERS,
        dtype: Any = None,
        *,
        key: Array | None = None,
        params: Params | None = None,
        **options: Any,
    ):
        if params is None:
            dtype = jnp.result_type(float) if dtype is None else dtype
            params = init(key, input_size, hidden_size, cell, dtype=dtype, **options)  # pyright: ignore (init checks it)
        check_cell(cell)
        sizes = check_params(params, cell)
        if sizes != (input_size, hidden_size):
            raise ValueError(f"params must be of sizes {(input_size, hidden_size)}; got {sizes}.")
        self.params = Params(*(None if value is None else jnp.asarray(value) for value in params))
        self.input_size, self.hidden_size, self.member = input_size, hidden_size, cell

    def __call__(self, input: Array, hidden: Array, *, key: Array | None = None) -> Array:
        """input [D], hidden [H] -> hidden [H]. ``key`` is not used, as in Equinox's own cells."""
        _check_one("input", input, "[D]")
        _check_one("hidden", hidden, "[H]")
        return step(self.params, hidden, input, self.member)


class MGU(eqx.Module):
    """An ``MGUCell`` over time, run by ``mgu_jax.scan`` with its hand-written backward pass.

    Args:
        cell: the ``MGUCell``.
        reverse: run from the last step to the first; the outputs stay in the order of time.
        options: static options of ``scan``: implementation, save, segment, precision, compute_dtype, recurrent_dropout,
            zoneout, dropconnect.
    """

    cell: MGUCell
    reverse: bool = eqx.field(static=True)
    options: tuple = eqx.field(static=True)

    def __init__(self, cell: MGUCell, *, reverse: bool = False, options: Mapping[str, Any] | None = None):
        check_ours(cell, MGUCell)
        check_options(options)
        self.cell, self.reverse, self.options = cell, reverse, tuple((options or {}).items())

    def __call__(
        self,
        input: Array,
        hidden: Array | None = None,
        *,
        length: Array | None = None,
        resets: Array | None = None,
        reset_to: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Array, Array]:
        """input [T, D] -> hs [T, H] and the last hidden [H].

        ``hidden`` [H] is the state to begin with, zeros if ``None``; ``length`` (a whole number, or []), ``resets``
        (bool [T]), ``reset_to`` ([H]) and ``key`` (for noise) are as in ``mgu_jax.scan``.
        """
        params = self.cell.params
        _check_one("input", input, "[T, D]")
        check_features("input", input, "T, ", params, "W_h")
        if hidden is not None:
            _check_one("hidden", hidden, "[H]")
            check_state("hidden", hidden, (), params, "input")
        if isinstance(length, int | np.integer):
            length = jnp.asarray(length)
        check_lengths(length, len(input), (), "length", "input")
        check_resets(resets, (len(input),), "input")
        options: dict[str, Any] = dict(self.options)
        return scan(
            params,
            input,
            hidden,
            cell=self.cell.member,
            lengths=length,
            resets=resets,
            reset_to=reset_to,
            reverse=self.reverse,
            key=key,
            **options,
        )
