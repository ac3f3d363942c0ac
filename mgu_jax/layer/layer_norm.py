"""Layer normalisation over features (Ba, Kiros and Hinton 2016, arXiv 1607.06450), and its backward, by hand.

    n = (s - mean(s)) / std(s),    z = g*n

A member without layer normalisation has no gain: g is ``None``, and z is s.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from mgu_jax.layer.params import Term
from mgu_jax.layer.products import like

_EPSILON = 1e-6  # added to the variance


class Normalised(NamedTuple):
    """What ``normalise`` keeps for its backward."""

    n: Array  # [..., H]
    inverse: Array  # [..., 1], 1/std


def normalise(s: Term, gain: Term) -> tuple[Term, Normalised | None]:
    """z [..., H], and what the backward needs, for s [..., H] and a gain [H]."""
    if gain is None:
        return s, None
    centred = s - jnp.mean(s, -1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + _EPSILON)
    n = centred * inverse
    return n * like(gain, n), Normalised(n, inverse)


def normalise_backward(dz: Array, gain: Term, norm: Normalised | None) -> Array:
    """ds [..., H], the cotangent of s, from the cotangent dz of z. That of the gain is dz*n, summed over the rows."""
    if norm is None:
        return dz
    n, inverse = norm
    dn = dz * like(gain, dz)
    return inverse * (dn - jnp.mean(dn, -1, keepdims=True) - n * jnp.mean(dn * n, -1, keepdims=True))


def normalise_tangent(v: Array, gain: Term, norm: Normalised | None) -> Array:
    """The tangent [..., H] of z along the tangent v of s. As a matrix it is the transpose of ``normalise_backward``."""
    if norm is None:
        return v
    n, inverse = norm
    along = inverse * (v - jnp.mean(v, -1, keepdims=True) - n * jnp.mean(v * n, -1, keepdims=True))
    return along * like(gain, along)
