"""Affine recurrences, solved for all steps at once.

Two steps in a row of y_t = A_t y_{t-1} + b_t are one step of the same form,

    (A_2, b_2) after (A_1, b_1)  =  (A_2 A_1, A_2 b_1 + b_2)

and this composition is associative, so about log2(T) rounds compose all steps (Blelloch 1990; Martin and Cundy 2018,
arXiv 1709.04057). This takes more arithmetic than a loop, and is faster where the latency of a step matters more than
its arithmetic, as on a GPU. A_t is a diagonal, [..., H], or a matrix, [..., H, H].
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax


def times(A: Array, y: Array, precision: Any = None) -> Array:
    """A y [..., H], for A [..., H] or [..., H, H] and y [..., H]."""
    return A * y if A.ndim == y.ndim else jnp.matmul(A, y[..., None], precision=precision)[..., 0]


def composed(A: Array, b: Array, reverse: bool, precision: Any = None) -> tuple[Array, Array]:
    """(A, b) of all steps up to each one: y_t = A_t y + b_t, if y is the state before the first step to run.

    Args:
        A: [T, ..., H] or [T, ..., H, H], with T at least 1.
        b: [T, ..., H].
        reverse: the last step runs first.
        precision: of products of matrices, as in ``jax.numpy.matmul``.
    """

    def after(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        (A_1, b_1), (A_2, b_2) = first, second
        both = A_2 * A_1 if A.ndim == b.ndim else jnp.matmul(A_2, A_1, precision=precision)
        return both, times(A_2, b_1, precision) + b_2

    return lax.associative_scan(after, (A, b), reverse=reverse)
