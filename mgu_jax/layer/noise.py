"""Noise for training: recurrent dropout and zoneout on the state, DropConnect on the weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from mgu_jax.layer.params import Params, Term

Rate = Any  # a number in [0, 1), of Python, NumPy or JAX; it may be traced


class Rates(NamedTuple):
    """The probabilities of the three kinds of noise."""

    recurrent_dropout: Rate = 0.0
    zoneout: Rate = 0.0
    dropconnect: Rate = 0.0


def is_off(rate: Rate) -> bool:
    """Whether the rate is known to be zero, so that no mask needs to be drawn."""
    return isinstance(rate, int | float) and rate == 0


def bernoulli_mask(key: Array, rate: Rate, shape: tuple[int, ...]) -> Array:
    """A mask of bools, each ``False`` with probability ``rate``.

    It is always drawn in float32, so that a key gives the same mask in every precision.
    """
    return jax.random.uniform(key, shape, jnp.float32) >= jnp.asarray(rate, jnp.float32)


def keep_probability(rate: Rate, dtype: DTypeLike) -> Array:
    """1 - rate. No gradient flows to a traced rate: sampling is not differentiable."""
    return 1 - lax.stop_gradient(jnp.asarray(rate, dtype))


def dropout_mask(key: Array, rate: Rate, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """A mask of numbers, each 0 with probability ``rate`` and 1/(1 - rate) otherwise, so that the mean is 1."""
    # In half precision 1 - rate may round to zero, and 1/(1 - rate) may exceed the largest number.
    scale = 1 / keep_probability(rate, dtype if jnp.finfo(dtype).bits > 16 else jnp.float32)
    scale = jnp.minimum(scale, float(jnp.finfo(dtype).max))
    return jnp.where(bernoulli_mask(key, rate, shape), scale, 0).astype(dtype)


def sample(
    key: Array | None, rates: Rates, shape: tuple[int, int, int], dtype: DTypeLike
) -> tuple[Array | None, Array | None]:
    """The (alpha, mask) of ``Marks`` for [T, B, H] = shape; ``None`` where nothing is dropped.

    Without a key there is no mask, and alpha is the expectation of zoneout, [T, 1, 1].
    """
    alpha = mask = None
    if not is_off(rates.zoneout):
        if key is None:
            alpha = jnp.broadcast_to(keep_probability(rates.zoneout, dtype), (shape[0], 1, 1))
        else:
            alpha = bernoulli_mask(jax.random.fold_in(key, 0), rates.zoneout, shape).astype(dtype)
    if key is not None and not is_off(rates.recurrent_dropout):
        mask = dropout_mask(jax.random.fold_in(key, 1), rates.recurrent_dropout, shape[1:], dtype)
    return alpha, mask


def mask_weights(key: Array | None, rate: Rate, params: Params) -> Params:
    """DropConnect: params with entries of U_f and U_h dropped, the same entries for all steps and samples."""
    if key is None or is_off(rate):
        return params

    def masked(number: int, U: Term) -> Term:
        return None if U is None else U * dropout_mask(jax.random.fold_in(key, number), rate, U.shape, U.dtype)

    return params._replace(U_f=masked(2, params.U_f), U_h=masked(3, params.U_h))
