"""The family as a cell of ``flax.nnx``, and a layer that runs ``scan`` in the place of nnx's loop (extra ``flax``).

    layer = nnx.RNN(MGUCell(28, 100, rngs=nnx.Rngs(0)))  # nnx's loop over our step
    layer = MGU(MGUCell(28, 100, rngs=nnx.Rngs(0)))      # our scan: the same parameters, and the same values

Both take nnx's arguments, and stand in ``nnx.Bidirectional``.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from mgu_jax import checks
from mgu_jax.extras import require
from mgu_jax.interop._arguments import check_options, check_ours
from mgu_jax.interop._flax_rnn import run
from mgu_jax.layer.cell import step
from mgu_jax.layer.family import MGU as PAPERS
from mgu_jax.layer.family import Cell, check_cell
from mgu_jax.layer.initial import init
from mgu_jax.layer.params import Params, check_params

nnx = require("flax.nnx", "flax")


class MGUCell(nnx.RNNCellBase):
    """One step of a member of the family; W_f, U_f and so on are its ``nnx.Param``s, and ``params`` is all of them.

    Args:
        in_features: D.
        hidden_features: H.
        cell: the member.
        params: ``Params`` to begin with; drawn if ``None``.
        param_dtype: of what is drawn.
        rngs: its stream "params" gives the key.
        options: as ``mgu_jax.init`` takes them, such as ``forget_bias``, in the paper's sign: -1 remembers.

    Raises:
        TypeError, ValueError: as ``mgu_jax.init`` raises them, or params that are not of this cell and these sizes.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: Cell = PAPERS,
        params: Params | None = None,
        param_dtype: Any = jnp.float32,
        rngs: Any = None,
        **options: Any,
    ):
        if params is None:
            if rngs is None:
                raise ValueError("rngs must be given where params is not; got None.")
            if not isinstance(rngs, nnx.Rngs):
                raise TypeError(f"rngs must be an nnx.Rngs; got {checks.describe(rngs)}.")
            if "dtype" in options:
                came = checks.describe(options["dtype"])
                raise TypeError(f"dtype must be left out (param_dtype is what is drawn); got {came}.")
            params = init(rngs.params(), in_features, hidden_features, cell, dtype=param_dtype, **options)
        check_cell(cell)
        sizes = check_params(params, cell)
        if sizes != (in_features, hidden_features):
            raise ValueError(f"params must be of sizes {(in_features, hidden_features)}; got {sizes}.")
        self.in_features, self.hidden_features, self.member = in_features, hidden_features, cell
        for name, value in params._asdict().items():
            setattr(self, name, nnx.data(None) if value is None else nnx.Param(jnp.asarray(value)))

    @property
    def params(self) -> Params:
        """The parameters as ``mgu_jax.scan`` takes them."""
        variables = (getattr(self, name) for name in Params._fields)
        return Params(*(None if v is None else v[...] for v in variables))

    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """carry [..., H], inputs [..., D] -> the new carry, twice."""
        h = step(self.params, carry, inputs, self.member)
        return h, h

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> Array:
        """[..., H] for inputs of shape [..., D]: zeros, or what ``carry_init`` draws with a key of rngs."""
        shape, dtype = (*input_shape[:-1], self.hidden_features), self.params.W_h.dtype
        if carry_init is None:
            return jnp.zeros(shape, dtype)
        if rngs is None:
            raise ValueError("rngs must be given where carry_init is; got None.")
        return carry_init(rngs.carry() if isinstance(rngs, nnx.Rngs) else rngs(), shape, dtype)

    @property
    def num_feature_axes(self) -> int:
        """1: features are the last axis."""
        return 1


class MGU(nnx.RNN):
    """``nnx.RNN`` of an ``MGUCell``, run by ``mgu_jax.scan`` with its hand-written backward pass.

    What ``nnx.RNN`` computes, with three differences, all past the end of sequences: outputs there are zero, a sequence
    of length 0 keeps its initial carry, and NaN in padding harms nothing. Any number of batch axes may have lengths.

    Args:
        cell: the ``MGUCell``.
        options: static options of ``scan``: implementation, save, segment, precision, compute_dtype, recurrent_dropout,
            zoneout, dropconnect.
        rnn: as ``nnx.RNN`` takes them: time_major, return_carry, reverse, keep_order. (What concerns its loop alone,
            such as unroll, changes nothing.)
    """

    def __init__(self, cell: MGUCell, *, options: Mapping[str, Any] | None = None, **rnn: Any):
        check_ours(cell, MGUCell)
        check_options(options)
        super().__init__(cell, **rnn)
        self.options = nnx.static(tuple((options or {}).items()))

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Array | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
        resets: Array | None = None,
        reset_to: Array | None = None,
        key: Array | None = None,
    ) -> Any:
        """inputs [..., T, D] -> outputs [..., T, H], or (carry, outputs) if return_carry.

        ``resets`` (bool, shaped as inputs without features), ``reset_to`` (a carry) and ``key`` (for noise) are as in
        ``mgu_jax.scan``; the other arguments as in ``nnx.RNN``.
        """
        del rngs  # the carry begins at zero
        return run(
            self,
            self.cell.params,
            inputs,
            initial_carry,
            self.cell.member,
            seq_lengths=seq_lengths,
            resets=resets,
            reset_to=reset_to,
            return_carry=return_carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
            key=key,
            **dict(self.options),
        )
