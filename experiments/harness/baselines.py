"""Flax's GRU, LSTM and MGU with the four functions of ``mgu_jax.Model``, so that the same code trains them.

The cells are those of ``flax.linen``, run by ``flax.linen.RNN``, with Flax's initial values, and JAX differentiates
them. Embedding, readout and dropout are as in ``mgu_jax.Model``.

Only the forget bias is not Flax's. A given forget bias opens the state-keeping gate equally far in every cell: the
default -1 in the paper's sign becomes a bias of +1 for Flax's z (GRU), f (LSTM) and f (MGU). Biases that
differ from unit to unit (chrono initialisation and others) give an LSTM's input gate the negative, as the authors of
chrono do.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mgu_jax import checks
from mgu_jax.extras import require
from mgu_jax.layer.initial import Drawn
from mgu_jax.layer.noise import dropout_mask, is_off

# Name -> (class of flax.linen, gate whose bias keeps the state, input gate beside it).
CELLS = {
    "gru": ("GRUCell", "iz", None),
    "lstm": ("OptimizedLSTMCell", "hf", "hi"),
    "linen-mgu": ("MGUCell", "if", None),
}


class Baseline(NamedTuple):
    """A model: the functions that ``mgu_jax.Model`` has as methods."""

    init: Callable[..., Any]
    apply: Callable[..., Any]
    step: Callable[..., Any]
    start: Callable[..., Any]
    readout: str


class BaselineParams(NamedTuple):
    """The parameters of a model."""

    cell: Any  # as Flax has them
    W_y: Any  # [H, K]; None where the embedding, transposed, reads out
    b_y: Any  # [K]
    embedding: Any = None  # [V, D]


@lru_cache(maxsize=256)
def baseline(
    name: str,
    input_size: int,
    hidden_size: int,
    output_size: int,
    readout: str = "all",
    embedding_size: int | None = None,
    dropout: float = 0.0,
    tie: bool = False,
) -> Baseline:
    """A model of one Flax layer with a linear readout. It takes no resets, and dropout is its only noise.

    Args:
        name: "gru", "lstm" or "linen-mgu".
        input_size: D; with an embedding, the number V of different tokens.
        hidden_size: H.
        output_size: K.
        readout, embedding_size, dropout, tie: as ``mgu_jax.Model`` takes them.

    Raises:
        ImportError: Flax is not installed.
        ValueError: an unknown name; from apply, another rate of noise, or training with dropout and without a key.
    """
    checks.check_choice("name", name, tuple(CELLS))
    checks.check_choice("readout", readout, ("all", "last", "mean"))
    linen = require("flax.linen", "flax")
    kind, keeps, takes = CELLS[name]
    cell = getattr(linen, kind)(features=hidden_size, parent=None)
    run = linen.RNN(cell, time_major=True, return_carry=True)
    width = embedding_size or input_size

    def init(key: Array, *, forget_bias: Any = -1.0, initial_scale: Any = 1.0) -> BaselineParams:
        checks.check_key("key", key)
        cell_key, readout_key, embedding_key, bias_key = jax.random.split(key, 4)
        drawn = run.init(cell_key, jnp.zeros((1, 1, width)))["params"]["cell"]
        drawn = jax.tree.map(lambda w: w * jnp.float32(initial_scale) if w.ndim == 2 else w, drawn)
        bias = forget_bias(bias_key, (hidden_size,), jnp.float32) if isinstance(forget_bias, Drawn) else forget_bias
        keep = jnp.broadcast_to(-jnp.asarray(bias, jnp.float32), (hidden_size,))
        drawn = drawn | {keeps: drawn[keeps] | {"bias": keep}}
        if takes and isinstance(forget_bias, Drawn):
            drawn |= {takes: drawn[takes] | {"bias": -keep}}
        W_y = None
        if not tie:
            W_y = jax.nn.initializers.glorot_uniform()(readout_key, (hidden_size, output_size), jnp.float32)
            W_y = W_y * jnp.float32(initial_scale)
        embedding = None
        if embedding_size is not None:
            embedding = jax.random.normal(embedding_key, (input_size, width), jnp.float32) * embedding_size**-0.5
        return BaselineParams(drawn, W_y, jnp.zeros(output_size), embedding)

    def start(params: BaselineParams, batch: tuple[int, ...] = ()) -> Any:
        return cell.initialize_carry(jax.random.key(0), (*batch, width))  # zeros

    def apply(
        params: BaselineParams,
        xs: Array,
        *,
        state: Any = None,
        lengths: Any = None,
        key: Array | None = None,
        training: bool | None = None,
        return_state: bool = False,
        **rates: Any,
    ) -> Any:
        rate = rates.pop("dropout", dropout)
        if unknown := [name for name, other in rates.items() if not is_off(other)]:
            raise ValueError(f"a rate must be dropout for a baseline; got {unknown[0]}.")
        if training and key is None and not is_off(rate):
            raise ValueError("key must be given to train with dropout; got None.")
        if params.embedding is not None:
            xs = jnp.take(params.embedding, xs, axis=0)
        carry = start(params, xs.shape[1:-1]) if state is None else state
        variables, steps = {"params": {"cell": params.cell}}, None if lengths is None else jnp.asarray(lengths)
        carry, hs = run.apply(variables, xs, initial_carry=carry, seq_lengths=steps)
        end = carry[1] if isinstance(carry, tuple) else carry
        if key is not None and training is not False and not is_off(rate):
            mask = dropout_mask(
                key, rate, (len(hs) + 1, *hs.shape[1:]), hs.dtype
            )  # the last row is for the end, as in mgu.Model
            hs, end = hs * mask[:-1], end * mask[-1]
        rows = end if readout == "last" else hs
        if readout == "mean":
            count = jnp.full(hs.shape[1:-1], len(hs)) if steps is None else steps
            valid = jnp.arange(len(hs)).reshape(-1, *[1] * count.ndim) < count[None]
            rows = jnp.where(valid[..., None], hs, 0).sum(0) / jnp.maximum(count, 1).astype(hs.dtype)[..., None]
        W_y: Any = params.W_y if params.W_y is not None else params.embedding
        W_y = W_y.T if tie else W_y
        ys = rows @ W_y + params.b_y
        return (ys, carry) if return_state else ys

    def step(params: BaselineParams, x: Array, state: Any = None) -> tuple[Array, Any]:
        if readout == "mean":
            raise ValueError("a model with readout 'mean' cannot be stepped: it reads out the whole sequence.")
        ys, state = apply(params, jnp.asarray(x)[None], state=state, return_state=True)
        return (ys[0] if readout == "all" else ys), state

    return Baseline(init, apply, step, start, readout)
