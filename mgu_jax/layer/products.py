"""How rows of features meet weights: the three products of a linear map and of its backward, in one place."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from mgu_jax import checks


def like(b: Any, rows: Array) -> Any:
    """b [..., H] repeated for every row [..., H]; spelled out, since implicit rank promotion may be forbidden."""
    return None if b is None else jnp.broadcast_to(b, rows.shape)


def transposed(W: Any) -> Any:
    """W^T, by which cotangents go back through x W. ``None`` stays ``None``, and a diagonal is its own."""
    return W if W is None or W.ndim == 1 else W.T


@dataclass(frozen=True)
class Products:
    """How rows meet weights. ``None`` (a term that is absent) stays ``None``; a weight [H] is the diagonal of a matrix.

    Attributes:
        precision: as in ``jax.lax.dot_general``, for every product, forward and backward.
        compute_dtype: the operands of every product are rounded to it, forward and backward; sums and results keep
            the dtype that they have. ``None`` rounds nothing.

    Raises:
        ValueError: a precision that JAX does not know, or a compute_dtype that is not floating.
    """

    precision: Any = None
    compute_dtype: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.precision, lax.Precision | lax.DotAlgorithmPreset):
            checks.check_choice("precision", self.precision, (None, "default", "high", "highest"))
        checks.check_choice("compute_dtype", self.compute_dtype, (None, "bfloat16", "float16", "float32", "float64"))

    def __call__(self, x: Array, W: Any) -> Any:
        """x W."""
        if W is None:
            return None
        dtype = x.dtype
        if self.compute_dtype is not None:
            x, W = x.astype(self.compute_dtype), W.astype(self.compute_dtype)
        if W.ndim == 1:
            return x.astype(dtype) * like(W.astype(dtype), x)
        return jnp.matmul(x, W, precision=self.precision, preferred_element_type=dtype)

    def weight(self, x: Array, dz: Array, W: Any) -> Any:
        """x^T dz summed over all rows, the cotangent of W in x W."""
        if W is None:
            return None
        x, dz = (a.reshape(-1, a.shape[-1]) for a in (x, dz))
        if W.ndim == 2:
            return self(x.T, dz)
        if self.compute_dtype is not None:
            x, dz = (a.astype(self.compute_dtype).astype(a.dtype) for a in (x, dz))
        return jnp.sum(x * dz, 0)
