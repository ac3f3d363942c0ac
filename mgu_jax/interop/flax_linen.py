"""The family as a cell of ``flax.linen``, and a layer that runs ``scan`` in the place of linen's loop (extra ``flax``).

    layer = nn.RNN(MinimalGatedCell(100))           # linen's loop over our step
    layer = MinimalGatedRNN(MinimalGatedCell(100))  # our scan: the same variables, and the same values

Both take linen's arguments, and stand in ``nn.Bidirectional``. ``nn.MGUCell`` is another function than the paper's
(``mgu_jax.interop.weights`` tells them apart), hence the longer names.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array, random

from mgu_jax.extras import require
from mgu_jax.interop._arguments import check_options, check_ours
from mgu_jax.interop._flax_rnn import chosen, run
from mgu_jax.layer.cell import step
from mgu_jax.layer.family import MGU, Cell
from mgu_jax.layer.initial import init
from mgu_jax.layer.params import Params

nn = require("flax.linen", "flax")
core = require("flax.core", "flax")


class MinimalGatedCell(nn.RNNCellBase):
    """One step of a member of the family; its variables have the names of ``Params``: W_f, U_f and so on.

    ``{"params": convert.to_dict(params)}`` are the variables of a cell with these parameters (of a layer or an
    ``nn.RNN``, one level deeper, in "cell").

    Attributes:
        features: H.
        cell: the member.
        options: as ``mgu_jax.init`` takes them, such as ``{"forget_bias": -1.0}``, in the paper's sign: -1 remembers.
        param_dtype: of the parameters and the carry.
        carry_init: draws the initial carry; zeros if ``None``.
    """

    features: int
    cell: Cell = MGU
    options: Mapping[str, Any] = core.FrozenDict()
    param_dtype: Any = jnp.float32
    carry_init: Callable[..., Array] | None = None

    @nn.compact
    def parameters(self, in_features: int) -> Params:
        """``Params`` for D input features, as ``mgu_jax.scan`` takes them."""

        def one(name: str) -> Any:
            def draw(key: Array) -> Array:
                drawn = init(key, in_features, self.features, self.cell, dtype=self.param_dtype, **self.options)
                return getattr(drawn, name)

            return self.param(name, draw)

        shapes = self.cell.shapes(in_features, self.features)
        return Params(*(None if shape is None else one(name) for name, shape in shapes._asdict().items()))

    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """carry [..., H], inputs [..., D] -> the new carry, twice."""
        h = step(self.parameters(inputs.shape[-1]), carry, inputs, self.cell)
        return h, h

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Array:
        """[..., H] for inputs of shape [..., D]."""
        shape = (*input_shape[:-1], self.features)
        return (
            jnp.zeros(shape, self.param_dtype)
            if self.carry_init is None
            else self.carry_init(rng, shape, self.param_dtype)
        )

    @property
    def num_feature_axes(self) -> int:
        """1: features are the last axis."""
        return 1


class MinimalGatedRNN(nn.RNN):
    """``nn.RNN`` of a ``MinimalGatedCell``, run by ``mgu_jax.scan`` with its hand-written backward pass.

    What ``nn.RNN`` computes, with three differences, all past the end of sequences: outputs there are zero, a sequence
    of length 0 keeps its initial carry, and NaN in padding harms nothing. Any number of batch axes may have lengths.

    Attributes:
        cell: the ``MinimalGatedCell``.
        time_major, return_carry, reverse, keep_order: as in ``nn.RNN``. (What concerns its loop alone, such as unroll,
            changes nothing.)
        options: static options of ``scan``: implementation, save, segment, precision, compute_dtype, recurrent_dropout,
            zoneout, dropconnect.
    """

    options: Mapping[str, Any] = core.FrozenDict()

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Array | None = None,
        init_key: Array | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        resets: Array | None = None,
        reset_to: Array | None = None,
        key: Array | None = None,
    ) -> Any:
        """inputs [..., T, D] -> outputs [..., T, H], or (carry, outputs) if return_carry.

        ``resets`` (bool, shaped as inputs without features), ``reset_to`` (a carry) and ``key`` (for noise) are as in
        ``mgu_jax.scan``; the other arguments as in ``nn.RNN``.
        """
        check_ours(self.cell, MinimalGatedCell)
        check_options(self.options)
        if initial_carry is None and self.cell.carry_init is not None:
            axis = 0 if chosen(self, time_major=time_major)[0] else inputs.ndim - 2
            shape = (*inputs.shape[:axis], *inputs.shape[axis + 1 :])
            initial_carry = self.cell.initialize_carry(random.key(0) if init_key is None else init_key, shape)
        return run(
            self,
            self.cell.parameters(inputs.shape[-1]),
            inputs,
            initial_carry,
            self.cell.cell,
            seq_lengths=seq_lengths,
            resets=resets,
            reset_to=reset_to,
            return_carry=return_carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
            key=key,
            **self.options,
        )
