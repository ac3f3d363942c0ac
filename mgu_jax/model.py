"""A model as a pair of pure functions: recurrent layers, one on the other, and a linear readout.

hs^0 = xs,   hs^l = scan(layers[l], hs^{l-1}),   ys = hs^L W_y + b_y
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mgu_jax import cell as cells
from mgu_jax import checks
from mgu_jax.cell import MGU, Cell
from mgu_jax.params import Params
from mgu_jax.sequence import IMPLEMENTATIONS, scan


class ModelParams(NamedTuple):
    """The parameters of a model."""

    layers: tuple[Params, ...]  # the first takes D features, every other the H of the one before
    W_y: Any  # [H, K]
    b_y: Any  # [K]


class Model(NamedTuple):
    """``init(key) -> params`` and ``apply(params, xs) -> ys``; ``model`` says what they take."""

    init: Callable[..., ModelParams]
    apply: Callable[..., Array]


def model(
    input_size: int,
    hidden_sizes: tuple[int, ...],
    output_size: int,
    cell: Cell = MGU,
    *,
    readout: str = "all",
    initializer: str = "orthogonal",
    implementation: str | None = None,
    dtype: Any = jnp.float32,
) -> Model:
    """A stack of recurrent layers with a linear readout.

    Args:
        input_size: D.
        hidden_sizes: H of every layer, the first first.
        output_size: K.
        cell: the member of the family that all layers use.
        readout: "all" gives ys [T, ..., K] from every step's state, "last" gives ys [..., K] from the last one's.
        initializer, dtype: as ``init`` takes them; the readout's W_y is Glorot's, its b_y zero.
        implementation: as ``scan`` takes it.

    Returns:
        ``Model(init, apply)``.

        ``init(key, forget_bias=-1.0, initial_scale=1.0) -> ModelParams``: ``forget_bias`` as in ``mgu_jax.init``,
        ``initial_scale`` multiplies every initial weight (not the biases); both may be traced.

        ``apply(params, xs) -> ys``: xs [T, ..., D].

    Raises:
        ValueError: a size below 1, no hidden size, or an unknown name.
        TypeError: from init, a key that is not one PRNG key; from apply, what ``scan`` raises.
    """
    cells.check_cell(cell)
    checks.check_size("input_size", input_size)
    checks.check_size("output_size", output_size)
    if not isinstance(hidden_sizes, tuple | list) or not hidden_sizes:
        raise ValueError(f"hidden_sizes must be a tuple of at least one width; got {hidden_sizes!r}.")
    for i, size in enumerate(hidden_sizes):
        checks.check_size(f"hidden_sizes[{i}]", size)
    checks.check_choice("readout", readout, ("all", "last"))
    checks.check_choice("implementation", implementation, (None, *IMPLEMENTATIONS))
    sizes = (input_size, *hidden_sizes)

    def init(key: Array, *, forget_bias: Any = -1.0, initial_scale: Any = 1.0) -> ModelParams:
        checks.check_key("key", key)
        *layer_keys, readout_key = jax.random.split(key, len(sizes))

        def scaled(weights: Any) -> Any:
            return jax.tree.map(lambda w: w * jnp.asarray(initial_scale, w.dtype) if w.ndim == 2 else w, weights)

        layers = tuple(
            scaled(cells.init(k, D, H, cell, initializer=initializer, forget_bias=forget_bias, dtype=dtype))
            for k, D, H in zip(layer_keys, sizes[:-1], sizes[1:], strict=True)
        )
        W_y = jax.nn.initializers.glorot_uniform()(readout_key, (sizes[-1], output_size), dtype)
        return ModelParams(layers, scaled(W_y), jnp.zeros(output_size, dtype))

    def apply(params: ModelParams, xs: Array) -> Array:
        if not isinstance(params, ModelParams):
            raise TypeError(f"params must be a ModelParams, as model.init makes it; got {checks.describe(params)}.")
        hs, h_last = xs, None
        for layer in params.layers:
            hs, h_last = scan(layer, hs, cell=cell, implementation=implementation)
        rows = hs if readout == "all" else h_last
        ys = rows @ params.W_y
        return ys + jnp.broadcast_to(params.b_y, ys.shape)

    return Model(init, apply)
