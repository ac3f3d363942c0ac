"""The family as a cell of Equinox, and a layer that runs ``scan`` (extra ``equinox``).

    cell = MGUCell(28, 100, key=key)   # cell(input [D], hidden [H]) -> hidden [H]
    layer = MGU(cell)                  # layer(input [T, D]) -> (hs [T, H], hidden [H])

Both take one example; use ``jax.vmap`` for a batch, as everywhere in Equinox.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mgu_jax.extras import require
from mgu_jax.interop._arguments import check_left_out, check_options, check_own_cell, check_params_fit
from mgu_jax.interop._promotion import check_real, promote, step
from mgu_jax.layer.family import MGU as PAPER_CELL
from mgu_jax.layer.family import Cell
from mgu_jax.layer.initial import init
from mgu_jax.layer.params import Params, check_features, check_lengths, check_resets, check_state
from mgu_jax.sequence import scan

eqx = require("equinox", "equinox")


def _check_one(name: str, value: Any, shape: str) -> None:
    """``value`` is one example: without this check, the batch axis would be taken for time."""
    if jnp.ndim(value) != shape.count(",") + 1:
        raise ValueError(f"{name} must be one example, {shape} (use jax.vmap for a batch); got {list(value.shape)}.")


class MGUCell(eqx.Module):
    """One step of a member of the family.

    Args:
        input_size: D.
        hidden_size: H.
        cell: the member.
        dtype: dtype of drawn parameters; ``None`` is float64 if x64 is enabled and float32 otherwise.
        key: the PRNG key to draw with.
        params: the initial ``Params``, instead of key.
        options: further arguments of ``mgu_jax.init``, such as ``forget_bias``. The sign is the paper's: -1 makes the
            cell keep its state.

    Raises:
        TypeError, ValueError: as ``mgu_jax.init`` raises them; params of a different cell or of different sizes.
    """

    params: Params
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)
    member: Cell = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        cell: Cell = PAPER_CELL,
        dtype: Any = None,
        *,
        key: Array | None = None,
        params: Params | None = None,
        **options: Any,
    ):
        if params is None:
            dtype = jnp.result_type(float) if dtype is None else dtype
            params = init(key, input_size, hidden_size, cell, dtype=dtype, **options)  # pyright: ignore (init checks it)
        check_params_fit(params, cell, input_size, hidden_size)
        self.params = Params(*(None if value is None else jnp.asarray(value) for value in params))
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.member = cell

    def __call__(self, input: Array, hidden: Array, *, key: Array | None = None) -> Array:
        """The new hidden [H]; input [D], hidden [H]. ``key`` has no effect, as in Equinox's own cells."""
        check_real("input", input)
        check_real("hidden", hidden)
        _check_one("input", input, "[D]")
        _check_one("hidden", hidden, "[H]")
        return step(self.params, hidden, input, self.member)


_CALL = MGUCell.__call__


class MGU(eqx.Module):
    """An ``MGUCell`` over time, run by ``mgu_jax.scan`` with its hand-written backward pass.

    Args:
        cell: the ``MGUCell``. One of a subclass that overrides ``__call__`` is called in a ``jax.lax.scan``, and
            takes no options.
        reverse: run from the last step to the first; the outputs remain in the order of time.
        options: static options of ``scan``: implementation, save, segment, precision, compute_dtype, recurrent_dropout,
            zoneout, dropconnect.
    """

    cell: MGUCell
    reverse: bool = eqx.field(static=True)
    options: tuple = eqx.field(static=True)

    def __init__(self, cell: MGUCell, *, reverse: bool = False, options: Mapping[str, Any] | None = None):
        check_own_cell(cell, MGUCell)
        check_options(options)
        self.cell = cell
        self.reverse = reverse
        self.options = tuple((options or {}).items())

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
        """All hidden states [T, H] and the last one [H], for input [T, D].

        ``hidden`` [H] is the initial state, zeros if ``None``. ``length`` (a whole number, or an array of shape []),
        ``resets`` (bool [T]), ``reset_to`` ([H]) and ``key`` (for noise) are those of ``mgu_jax.scan``. A subclass that
        overrides ``__call__`` gets one key per step.
        """
        if type(self.cell).__call__ is not _CALL:
            return self._loop(input, hidden, length, resets, reset_to, key)
        for name, value in (("input", input), ("hidden", hidden), ("reset_to", reset_to)):
            check_real(name, value)
        params, (input, hidden, reset_to), _ = promote(self.cell.params, None, input, hidden, reset_to)
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

    def _loop(
        self, input: Array, hidden: Any, length: Any, resets: Array | None, reset_to: Any, key: Array | None
    ) -> tuple[Any, Any]:
        """What ``__call__`` returns, by one call of the cell per step."""
        check_left_out(self.cell, MGUCell, {"options": dict(self.options) or None})
        T = len(input)
        if hidden is None:
            hidden = jnp.zeros(self.cell.hidden_size, promote(self.cell.params, None, input)[0].W_h.dtype)
        first = hidden if reset_to is None else reset_to
        valid = None if length is None else jnp.arange(T) < length
        keys = None if key is None else jax.random.split(key, T)

        def choose(which: Array | None, one: Any, other: Any) -> Any:
            return one if which is None else jax.tree.map(partial(jnp.where, which), one, other)

        def one_step(h: Any, rows: Any) -> tuple[Any, Any]:
            x, valid, reset, key = rows
            h = choose(None if reset is None else ~reset, h, first)
            x = choose(valid, x, jnp.zeros_like(x))  # padding may hold NaN
            new = self.cell(x, h, **({} if key is None else {"key": key}))
            return choose(valid, new, h), choose(valid, new, jax.tree.map(jnp.zeros_like, new))

        last, hs = jax.lax.scan(one_step, hidden, (input, valid, resets, keys), reverse=self.reverse)
        return hs, last
