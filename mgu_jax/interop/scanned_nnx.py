"""``ScannedMGU`` for ``flax.nnx``, for agents with memory (extra ``flax``).

    layer = ScannedMGU(28, 128, rngs=nnx.Rngs(0))
    carry = ScannedMGU.initialize_carry(batch, 128)
    carry, outputs = layer(carry, (inputs, resets))  # [T, B, 28] and [T, B] -> [T, B, 128]

``scanned.py`` says what resets mean.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from mgu_jax.extras import require
from mgu_jax.interop import scanned
from mgu_jax.interop.flax_nnx import MGU, MGUCell
from mgu_jax.layer.params import Params

nnx = require("flax.nnx", "flax")


class ScannedMGU(nnx.Module):
    """A layer with resets, run by ``mgu_jax.scan`` with its hand-written backward pass.

    Args:
        in_features: D.
        hidden_features: H.
        options: static options of ``scan``: implementation, save, segment, precision, compute_dtype, recurrent_dropout,
            zoneout, dropconnect.
        cell_options: further arguments of ``MGUCell``: cell, params, param_dtype, rngs, and those of ``mgu_jax.init``.

    Raises:
        TypeError, ValueError: as ``MGUCell`` raises them; an option that ``scan`` does not have.
    """

    def __init__(
        self, in_features: int, hidden_features: int, *, options: Mapping[str, Any] | None = None, **cell_options: Any
    ):
        cell = MGUCell(in_features, hidden_features, **cell_options)
        self.layer = MGU(cell, options=options, time_major=True, return_carry=True, rngs=False)

    initialize_carry = staticmethod(scanned.initialize_carry)

    @property
    def params(self) -> Params:
        """The parameters as ``mgu_jax.scan`` takes them."""
        return self.layer.cell.params

    def __call__(
        self, carry: Array, x: tuple[Array, Array], *, reset_to: Array | None = None, key: Array | None = None
    ) -> tuple[Array, Array]:
        """(carry [..., H] after the last step, outputs [T, ..., H]), as ``scanned.scanned_mgu`` returns them.

        carry [..., H] and x, the pair (inputs [T, ..., D], resets [T, ...]), are those of ``scanned_mgu``, and so is
        reset_to; ``key`` is for noise, as in ``scan``.
        """
        inputs, resets = scanned.inputs_and_resets(carry, x, self.layer.cell.hidden_features)
        reset_to = jnp.zeros_like(carry) if reset_to is None else reset_to
        return self.layer(inputs, initial_carry=carry, resets=resets, reset_to=reset_to, key=key)
