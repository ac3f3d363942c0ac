"""Layer normalisation over features (Ba, Kiros and Hinton 2016, arXiv 1607.06450), and its backward, by hand.

    n = (s - mean(s)) / std(s),    z = g*n

A gain of ``None`` stands for no normalisation: s goes through as it is.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from mgu_jax.layer.products import like

_EPSILON = 1e-6  # added to the variance


def normalise(s: Any, gain: Any) -> tuple[Any, Any]:
    """s [..., H], gain [H] -> z [..., H], and (n, 1/std) for the backward."""
    if gain is None:
        return s, None
    centred = s - jnp.mean(s, -1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + _EPSILON)
    n = centred * inverse
    return n * like(gain, n), (n, inverse)


def normalise_backward(dz: Array, gain: Any, norm: Any) -> Array:
    """The cotangent of s from that of z. That of the gain is dz*n, summed over the rows."""
    if gain is None:
        return dz
    n, inverse = norm
    dn = dz * like(gain, dz)
    return inverse * (dn - jnp.mean(dn, -1, keepdims=True) - n * jnp.mean(dn * n, -1, keepdims=True))
