"""How rows of features meet weights: the three products of a linear map and of its backward, in one place."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from mgu_jax import checks


def like(b: Array, rows: Array) -> Array:
    """A vector [H] repeated for every row [..., H]; spelled out, since implicit rank promotion may be forbidden."""
    return jnp.broadcast_to(b, rows.shape)


@dataclass(frozen=True)
class Products:
    """How rows meet weights. ``None`` (a term that is absent) stays ``None``; a weight [H] is the diagonal of a matrix.

    Attributes:
        precision: as in ``jax.lax.dot_general``, for every product, forward and backward.

    Raises:
        ValueError: a precision that JAX does not know.
    """

    precision: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.precision, lax.Precision | lax.DotAlgorithmPreset):
            checks.check_choice("precision", self.precision, (None, "default", "high", "highest"))

    def __call__(self, x: Array, W: Array | None) -> Any:
        """x W."""
        if W is None:
            return None
        return x * like(W, x) if W.ndim == 1 else jnp.matmul(x, W, precision=self.precision)

    def back(self, dz: Array, W: Array | None) -> Any:
        """dz W^T, the cotangent of x in x W."""
        return self(dz, W if W is None or W.ndim == 1 else W.T)

    def weight(self, x: Array, dz: Array, W: Array | None) -> Any:
        """x^T dz summed over all rows, the cotangent of W in x W."""
        if W is None:
            return None
        x, dz = (a.reshape(-1, a.shape[-1]) for a in (x, dz))
        return jnp.sum(x * dz, 0) if W.ndim == 1 else jnp.matmul(x.T, dz, precision=self.precision)
