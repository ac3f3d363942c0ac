"""The products of rows and weights, x W forward and dz W^T and x^T dz backward, in one place."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from mgu_jax import checks
from mgu_jax.layer.params import Term

# Rows and columns of a matrix whose product is written out. On a CPU, XLA multiplies a stack of such matrices, as vmap
# makes it of many small networks, one after another: it takes thirty times as long.
SMALL = 4

Precision = str | lax.Precision | lax.DotAlgorithmPreset | None


def wide(array: Array) -> Any:
    """The dtype in which sums over steps and samples are kept: float32 for an array of half precision, else its own."""
    return jnp.dtype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array.dtype


def repeated(b: Array, shape: tuple[int, ...]) -> Array:
    """b [H] for every row of this shape [..., H].

    JAX sums the derivative over the rows in the dtype in which b is repeated. In bfloat16, the sum of a thousand equal
    numbers would stop growing after the first few hundred.
    """
    return jnp.broadcast_to(b.astype(wide(b)), shape).astype(b.dtype)


def like(b: Term, rows: Array) -> Term:
    """b repeated for every row [..., H], or ``None``; explicit, since JAX may forbid rank promotion."""
    return None if b is None else repeated(b, rows.shape)


def transposed(W: Term) -> Term:
    """W^T, or ``None``. A diagonal [H] is its own transpose."""
    return W if W is None or W.ndim == 1 else W.T


@dataclass(frozen=True)
class Products:
    """The product of rows and a weight, a matrix [D, H] or a diagonal [H]. A weight of ``None`` gives ``None``.

    Attributes:
        precision: as in ``jax.lax.dot_general``, for every product, forward and backward.
        compute_dtype: the name of the dtype to which the operands of every product are rounded, forward and backward.
            Sums and results keep their own dtype. ``None`` rounds nothing.

    Raises:
        ValueError: a precision that JAX does not know, or a compute_dtype that is not floating.
    """

    precision: Precision = None
    compute_dtype: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.precision, lax.Precision | lax.DotAlgorithmPreset):
            checks.check_choice("precision", self.precision, (None, "default", "high", "highest"))
        checks.check_choice("compute_dtype", self.compute_dtype, (None, "bfloat16", "float16", "float32", "float64"))

    def __call__(self, x: Array, W: Term) -> Term:
        """x W [..., H], for x [..., D]."""
        if W is None:
            return None
        dtype, kept = x.dtype, wide(x)
        if self.compute_dtype is not None:
            x, W = x.astype(self.compute_dtype), W.astype(self.compute_dtype)
        if W.ndim == 1:
            return x.astype(dtype) * like(W.astype(dtype), x)
        if all(isinstance(size, int) and 0 < size <= SMALL for size in W.shape):  # sizes may be symbolic
            x, W, shape = x.astype(kept), W.astype(kept), (*x.shape[:-1], W.shape[1])
            first, *others = (x[..., i : i + 1] * repeated(W[i], shape) for i in range(len(W)))
            return sum(others, first).astype(dtype)
        return jnp.matmul(x, W, precision=self.precision, preferred_element_type=dtype)

    def weight(self, x: Array, dz: Array, W: Term) -> Term:
        """The cotangent of W in x W: x^T dz, summed over all rows."""
        if W is None:
            return None
        x, dz = (a.reshape(-1, a.shape[-1]) for a in (x, dz))
        if W.ndim == 2:
            return self(x.T, dz)
        if self.compute_dtype is not None:
            x, dz = (a.astype(self.compute_dtype).astype(a.dtype) for a in (x, dz))
        return jnp.sum(x * dz, 0)
