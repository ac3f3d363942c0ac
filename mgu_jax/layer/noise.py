"""Noise for training: which parts of the state and of the weights a run over time leaves out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from mgu_jax.layer.params import Params


class Rates(NamedTuple):
    """Probabilities in [0, 1), each of which may be traced."""

    recurrent_dropout: Any = 0.0
    zoneout: Any = 0.0
    dropconnect: Any = 0.0


def is_off(rate: Any) -> bool:
    """Whether the rate is zero for certain, so that nothing has to be drawn."""
    return isinstance(rate, int | float) and rate == 0


def keep(key: Array, rate: Any, shape: tuple[int, ...]) -> Array:
    """False with probability ``rate``. Drawn in float32 always, so that a key means the same in every precision."""
    return jax.random.uniform(key, shape, jnp.float32) >= jnp.asarray(rate, jnp.float32)


def share_kept(rate: Any, dtype: Any) -> Array:
    """1 - rate. A rate that is traced gets no gradient: through what is drawn there is none to follow."""
    return 1 - lax.stop_gradient(jnp.asarray(rate, dtype))


def drop(key: Array, rate: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Zero with probability ``rate``, else 1/(1 - rate), so that the mean is one."""
    # Of a rate next to 1 the share is zero in half precision, and in float32 nothing may be kept at all.
    kept = 1 / share_kept(rate, dtype if jnp.finfo(dtype).bits > 16 else jnp.float32)
    kept = jnp.minimum(kept, float(jnp.finfo(dtype).max))
    return jnp.where(keep(key, rate, shape), kept, 0).astype(dtype)


def sample(key: Array | None, rates: Rates, shape: tuple[int, int, int], dtype: Any) -> tuple[Any, Any]:
    """(k, m) of ``Marks`` for T, B, H = shape. Without a key zoneout takes its expectation, and m is ``None``."""
    k = m = None
    if not is_off(rates.zoneout):
        if key is None:
            k = jnp.broadcast_to(share_kept(rates.zoneout, dtype), (shape[0], 1, 1))
        else:
            k = keep(jax.random.fold_in(key, 0), rates.zoneout, shape).astype(dtype)
    if key is not None and not is_off(rates.recurrent_dropout):
        m = drop(jax.random.fold_in(key, 1), rates.recurrent_dropout, shape[1:], dtype)
    return k, m


def mask_weights(key: Array | None, rate: Any, params: Params) -> Params:
    """DropConnect: entries of U_f and U_h left out, the same for all steps and samples."""
    if key is None or is_off(rate):
        return params

    def masked(number: int, U: Any) -> Any:
        return None if U is None else U * drop(jax.random.fold_in(key, number), rate, U.shape, U.dtype)

    return params._replace(U_f=masked(2, params.U_f), U_h=masked(3, params.U_h))
