"""Whether two pytrees hold the same bits."""

import jax
import jax.numpy as jnp
import numpy as np


def same(a, b):
    """Whether all leaves have the same dtype, shape and bits; PRNG keys too. The trees must have the same structure."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        for x, y in zip(*(map(_bits, jax.tree.leaves(tree)) for tree in (a, b)), strict=True)
    )


def _bits(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)
