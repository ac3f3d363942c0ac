"""The family as a cell of ``flax.linen``, and a layer that runs ``scan`` instead of linen's loop (extra ``flax``).

    layer = nn.RNN(MinimalGatedCell(100))           # linen's loop over our step
    layer = MinimalGatedRNN(MinimalGatedCell(100))  # our scan, with the same variables and the same values

Both take linen's arguments and work in ``nn.Bidirectional``. The names are long because ``nn.MGUCell`` exists and
computes a different function from the paper's cell; ``mgu_jax.interop.weights`` converts between the two where that is
possible.
"""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import jax.numpy as jnp
from jax import Array, random

from mgu_jax.extras import require
from mgu_jax.interop._arguments import check_options, check_own_cell
from mgu_jax.interop._flax_rnn import CallOptions, for_flax_loop, run_rnn
from mgu_jax.interop._promotion import check_real, step
from mgu_jax.layer.family import MGU, Cell
from mgu_jax.layer.initial import init
from mgu_jax.layer.params import Params

nn = require("flax.linen", "flax")
core = require("flax.core", "flax")


class MinimalGatedCell(nn.RNNCellBase):
    """One step of a member of the family. Its variables have the names of ``Params``: W_f, U_f and so on.

    ``{"params": convert.to_dict(params)}`` are the variables of a cell with these parameters. In a layer or an
    ``nn.RNN`` they are one level deeper, in "cell".

    Attributes:
        features: H.
        cell: the member.
        options: further arguments of ``mgu_jax.init``, such as ``{"forget_bias": -1.0}``. The sign is the paper's:
            -1 makes the cell keep its state.
        param_dtype: dtype of the parameters and of the carry.
        carry_init: draws the initial carry; zeros if ``None``.
        dtype: dtype of the computation, as in linen's own cells; ``None`` is that of parameters, inputs and carry
            together. If it is narrower than the carry, the operands of all products are rounded to it.
    """

    features: int
    cell: Cell = MGU
    options: Mapping[str, Any] = core.FrozenDict()
    param_dtype: Any = jnp.float32
    carry_init: Callable[..., Array] | None = None
    dtype: Any = None

    @nn.compact
    def parameters(self, in_features: int) -> Params:
        """The ``Params`` for D input features, as ``mgu_jax.scan`` takes them."""

        def one(name: str) -> Any:
            def draw(key: Array) -> Array:
                drawn = init(key, in_features, self.features, self.cell, dtype=self.param_dtype, **self.options)
                return getattr(drawn, name)

            return self.param(name, draw)

        shapes = self.cell.shapes(in_features, self.features)
        return Params(*(None if shape is None else one(name) for name, shape in shapes._asdict().items()))

    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """The new carry [..., H] twice, as carry and as output; carry [..., H], inputs [..., D]."""
        check_real("carry", carry)
        check_real("inputs", inputs)
        h = step(self.parameters(inputs.shape[-1]), carry, inputs, self.cell, self.dtype)
        return h, h

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Array:
        """The initial carry [..., H] for inputs of shape [..., D]."""
        shape = (*input_shape[:-1], self.features)
        if self.carry_init is None:
            return jnp.zeros(shape, self.param_dtype)
        return self.carry_init(rng, shape, self.param_dtype)

    @property
    def num_feature_axes(self) -> int:
        """1: the last axis has the features."""
        return 1


_CALL = MinimalGatedCell.__call__


class MinimalGatedRNN(nn.RNN):
    """``nn.RNN`` of a ``MinimalGatedCell``, run by ``mgu_jax.scan`` with its hand-written backward pass.

    It computes what ``nn.RNN`` computes, except past the end of a sequence: outputs there are zero, a sequence of
    length 0 keeps its initial carry, and NaN in the padding has no effect. ``seq_lengths`` works with any number of
    batch axes. README.md in this folder lists all differences.

    Attributes:
        cell: the ``MinimalGatedCell``. One of a subclass that overrides ``__call__``, which transformations such as
            ``nn.remat`` also make, is run by linen's own loop, exactly as by ``nn.RNN``, and takes no options.
        time_major, return_carry, reverse, keep_order: as in ``nn.RNN``. Its options for the loop, such as unroll, have
            no effect.
        options: static options of ``scan``: implementation, save, segment, precision, compute_dtype, recurrent_dropout,
            zoneout, dropconnect.
    """

    options: Mapping[str, Any] = core.FrozenDict()

    def __call__(self, inputs: Array, *, init_key: Array | None = None, **call: Unpack[CallOptions]) -> Any:
        """outputs [..., T, H], or (carry, outputs) with return_carry, of inputs [..., T, D].

        ``init_key`` is the key for the cell's ``carry_init``. The other arguments are those of ``nn.RNN``, and
        ``resets``, ``reset_to`` and ``key`` of ``mgu_jax.scan``; see ``CallOptions``.
        """
        check_own_cell(self.cell, MinimalGatedCell)
        check_options(self.options)
        cell = self.cell
        if type(cell).__call__ is not _CALL:
            return super().__call__(inputs, init_key=init_key, **for_flax_loop(self, MinimalGatedCell, call))

        def initialize_carry(shape: tuple[int, ...]) -> Array:
            return cell.initialize_carry(random.key(0) if init_key is None else init_key, shape)

        check_real("inputs", inputs)
        params = cell.parameters(inputs.shape[-1])
        return run_rnn(self, params, cell.cell, self.options, initialize_carry, cell.dtype, inputs, **call)
