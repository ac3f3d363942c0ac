"""The family as a cell of ``flax.nnx``, and a layer that runs ``scan`` instead of nnx's loop (extra ``flax``).

    layer = nnx.RNN(MGUCell(28, 100, rngs=nnx.Rngs(0)))  # nnx's loop over our step
    layer = MGU(MGUCell(28, 100, rngs=nnx.Rngs(0)))      # our scan, with the same parameters and values

Both take nnx's arguments and work in ``nnx.Bidirectional``.
"""

from collections.abc import Mapping
from typing import Any, Unpack

import jax.numpy as jnp
from jax import Array

from mgu_jax import checks
from mgu_jax.extras import require
from mgu_jax.interop._arguments import check_options, check_own_cell, check_params_fit
from mgu_jax.interop._flax_rnn import CallOptions, for_flax_loop, run_rnn
from mgu_jax.interop._promotion import check_real, step
from mgu_jax.layer.family import MGU as PAPER_CELL
from mgu_jax.layer.family import Cell
from mgu_jax.layer.initial import init
from mgu_jax.layer.params import Params

nnx = require("flax.nnx", "flax")


class MGUCell(nnx.RNNCellBase):
    """One step of a member of the family. Its ``nnx.Param``s are W_f, U_f and so on; ``params`` has all of them.

    Args:
        in_features: D.
        hidden_features: H.
        cell: the member.
        params: the initial ``Params``; drawn if ``None``.
        dtype: dtype of the computation, as in nnx's own cells; ``None`` is that of parameters, inputs and carry
            together. If it is narrower than the carry, the operands of all products are rounded to it.
        param_dtype: dtype of drawn parameters.
        rngs: an ``nnx.Rngs``, whose stream "params" gives the key to draw with.
        options: further arguments of ``mgu_jax.init``, such as ``forget_bias``. The sign is the paper's: -1 makes the
            cell keep its state.

    Raises:
        TypeError, ValueError: as ``mgu_jax.init`` raises them; params of a different cell or of different sizes.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: Cell = PAPER_CELL,
        params: Params | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: Any = None,
        **options: Any,
    ):
        if params is None:
            if rngs is None:
                raise ValueError("rngs must be given if params is not; got None.")
            if not isinstance(rngs, nnx.Rngs):
                raise TypeError(f"rngs must be an nnx.Rngs; got {checks.describe(rngs)}.")
            params = init(rngs.params(), in_features, hidden_features, cell, dtype=param_dtype, **options)
        check_params_fit(params, cell, in_features, hidden_features)
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.member = cell
        if dtype is not None:
            checks.check_floating("dtype", dtype)
        self.dtype = dtype
        for name, value in params._asdict().items():
            setattr(self, name, nnx.data(None) if value is None else nnx.Param(jnp.asarray(value)))

    @property
    def params(self) -> Params:
        """The parameters as ``mgu_jax.scan`` takes them."""
        variables = (getattr(self, name) for name in Params._fields)
        return Params(*(None if v is None else v[...] for v in variables))

    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """The new carry [..., H] twice, as carry and as output; carry [..., H], inputs [..., D]."""
        check_real("carry", carry)
        check_real("inputs", inputs)
        h = step(self.params, carry, inputs, self.member, self.dtype)
        return h, h

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> Array:
        """The initial carry [..., H] for inputs of shape [..., D]: zeros, or ``carry_init`` with a key of rngs."""
        shape, dtype = (*input_shape[:-1], self.hidden_features), self.params.W_h.dtype
        if carry_init is None:
            return jnp.zeros(shape, dtype)
        if rngs is None:
            raise ValueError("rngs must be given if carry_init is; got None.")
        return carry_init(rngs.carry() if isinstance(rngs, nnx.Rngs) else rngs(), shape, dtype)

    @property
    def num_feature_axes(self) -> int:
        """1: the last axis has the features."""
        return 1


_CALL = MGUCell.__call__


class MGU(nnx.RNN):
    """``nnx.RNN`` of an ``MGUCell``, run by ``mgu_jax.scan`` with its hand-written backward pass.

    It computes what ``nnx.RNN`` computes, except past the end of a sequence: outputs there are zero, a sequence of
    length 0 keeps its initial carry, and NaN in the padding has no effect. ``seq_lengths`` works with any number of
    batch axes. README.md in this folder lists all differences.

    Args:
        cell: the ``MGUCell``. One of a subclass that overrides ``__call__`` is run by nnx's own loop, exactly as by
            ``nnx.RNN``, and takes no options.
        options: static options of ``scan``: implementation, save, segment, precision, compute_dtype, recurrent_dropout,
            zoneout, dropconnect.
        rnn: arguments of ``nnx.RNN``: time_major, return_carry, reverse, keep_order. Its options for the loop, such as
            unroll, have no effect.
    """

    def __init__(self, cell: MGUCell, *, options: Mapping[str, Any] | None = None, **rnn: Any):
        check_own_cell(cell, MGUCell)
        check_options(options)
        super().__init__(cell, **rnn)
        self.options = nnx.static(tuple((options or {}).items()))

    def __call__(self, inputs: Array, *, rngs: Any = None, **call: Unpack[CallOptions]) -> Any:
        """outputs [..., T, H], or (carry, outputs) with return_carry, of inputs [..., T, D].

        ``rngs`` is for a cell that draws its initial carry. The other arguments are those of ``nnx.RNN``, and
        ``resets``, ``reset_to`` and ``key`` of ``mgu_jax.scan``; see ``CallOptions``.
        """
        cell = self.cell
        if type(cell).__call__ is not _CALL:
            return super().__call__(inputs, rngs=rngs, **for_flax_loop(self, MGUCell, call))
        rngs = self.rngs if rngs is None else rngs

        def initialize_carry(shape: tuple[int, ...]) -> Array:
            return cell.initialize_carry(shape, rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs)

        return run_rnn(self, cell.params, cell.member, dict(self.options), initialize_carry, cell.dtype, inputs, **call)
