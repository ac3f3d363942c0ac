"""``ScannedMGU`` for ``flax.linen``: takes the place of the ``ScannedRNN`` of agents with memory (extra ``flax``).

    carry = ScannedMGU.initialize_carry(batch, 128)
    carry, outputs = ScannedMGU()(carry, (inputs, resets))  # [T, B, D] and [T, B] -> [T, B, 128]

``scanned.py`` says what resets mean.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from mgu_jax.extras import require
from mgu_jax.interop import scanned
from mgu_jax.interop.flax_linen import MinimalGatedCell, MinimalGatedRNN
from mgu_jax.layer.family import MGU, Cell

nn = require("flax.linen", "flax")
core = require("flax.core", "flax")


class ScannedMGU(nn.Module):
    """A layer with resets, run by ``mgu_jax.scan`` with its hand-written backward pass.

    Its variables are those of a module that scans a ``MinimalGatedCell`` by ``nn.scan``.

    Attributes:
        features: H; the width of the carry if ``None``.
        cell: the member.
        init_options: further arguments of ``mgu_jax.init``, such as ``{"forget_bias": -1.0}``.
        param_dtype: dtype of the parameters.
        options: static options of ``scan``: implementation, save, segment, precision, compute_dtype, recurrent_dropout,
            zoneout, dropconnect.
    """

    features: int | None = None
    cell: Cell = MGU
    init_options: Mapping[str, Any] = core.FrozenDict()
    param_dtype: Any = jnp.float32
    options: Mapping[str, Any] = core.FrozenDict()

    initialize_carry = staticmethod(scanned.initialize_carry)

    @nn.compact
    def __call__(
        self, carry: Array, x: tuple[Array, Array], *, reset_to: Array | None = None, key: Array | None = None
    ) -> tuple[Array, Array]:
        """(carry [..., H] after the last step, outputs [T, ..., H]), as ``scanned.scanned_mgu`` returns them.

        carry [..., H] and x, the pair (inputs [T, ..., D], resets [T, ...]), are those of ``scanned_mgu``, and so is
        reset_to; ``key`` is for noise, as in ``scan``.
        """
        inputs, resets = scanned.inputs_and_resets(carry, x, self.features)
        cell = MinimalGatedCell(carry.shape[-1], self.cell, self.init_options, self.param_dtype)
        layer = MinimalGatedRNN(cell, time_major=True, return_carry=True, options=self.options)
        reset_to = jnp.zeros_like(carry) if reset_to is None else reset_to
        return layer(inputs, initial_carry=carry, resets=resets, reset_to=reset_to, key=key)
