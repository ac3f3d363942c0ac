"""Models of several widths in the arrays of the widest: the units that a narrow one lacks are zero for ever.

A unit whose parameters are all zero has the candidate activation(0) = 0, so its state stays 0. Nothing reads it, since
its rows of U and of the next product are zero, so no gradient reaches it, and its own state of 0 gives these rows a
gradient of zero. An optimiser moves it only if it moves a zero parameter whose gradient has always been zero.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mgu_jax import checks


def resized(params: Any, sizes: tuple[int, ...]) -> Any:
    """``ModelParams`` with these hidden sizes: units are cut off at the end of each layer, or added as zeros.

    All arrays may have leading axes, such as those of the members of a sweep.
    """
    old = tuple(layer.b_h.shape[-1] for layer in params.layers)
    both = _directions(params, old)

    def columns(a: Any, size: int) -> Any:
        return _cut(a, -1, size, 1)

    def rows(a: Any, i: int) -> Any:
        """W of layer i, or W_y, with the rows of the outputs of layer i - 1."""
        return a if i == 0 else _cut(a, -2, sizes[i - 1], both)

    def layer(i: int, params: Any) -> Any:
        def one(name: str, a: Any) -> Any:
            if a is None:
                return None
            if name[0] == "W":
                a = rows(a, i)
            elif name[0] == "U" and a.ndim > params.b_h.ndim:  # dense
                a = _cut(a, -2, sizes[i], 1)
            return columns(a, sizes[i])

        return params._replace(**{name: one(name, a) for name, a in params._asdict().items()})

    def direction(layers: Any) -> Any:
        return layers and tuple(layer(i, own) for i, own in enumerate(layers))

    h0 = params.h0 and params.h0._replace(
        **{name: layers and tuple(map(columns, layers, sizes)) for name, layers in params.h0._asdict().items()}
    )
    W_y = rows(params.W_y, len(sizes))
    return params._replace(layers=direction(params.layers), backward=direction(params.backward), W_y=W_y, h0=h0)


def as_width(model: Any, hidden_size: Any) -> int:
    """``hidden_size`` as a whole number of units that the layers of a model can hold beside zero ones.

    Raises:
        TypeError, ValueError: it is another one, the cell has layer_norm, or the model has tie.
    """
    if model.cell.layer_norm:
        rule = "hidden_size must be None for a cell with layer_norm, whose mean sees all units"
        raise ValueError(f"{rule}; got {checks.describe(hidden_size)}.")
    if model.tie:
        rule = "hidden_size must be None for a model with tie, whose outputs are as wide as its embedding"
        raise ValueError(f"{rule}; got {checks.describe(hidden_size)}.")
    return checks.as_size("hidden_size", hidden_size, min(model.hidden_sizes))


def _directions(params: Any, sizes: tuple[int, ...]) -> int:
    """2 if the outputs of two directions are put side by side, and 1 otherwise."""
    return params.W_y.shape[-2] // sizes[-1]


def _cut(a: Array, axis: int, size: int, blocks: int) -> Array:
    """``a`` with each of its blocks along an axis cut or filled with zeros to a size."""
    axis += a.ndim
    old = a.shape[axis] // blocks
    a = jnp.asarray(a).reshape(*a.shape[:axis], blocks, old, *a.shape[axis + 1 :])
    a = jax.lax.slice_in_dim(a, 0, min(old, size), axis=axis + 1)
    a = jnp.pad(a, [(0, size - a.shape[i]) if i == axis + 1 else (0, 0) for i in range(a.ndim)])
    return a.reshape(*a.shape[:axis], blocks * size, *a.shape[axis + 2 :])


def check_same(name: str, params: Any, narrow: Any) -> None:
    """Raise ValueError unless what ``resized`` cut off of params, for the narrow ones, is zero."""
    again = resized(narrow, tuple(layer.b_h.shape[-1] for layer in params.layers))
    for path, wide in jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: np.abs(a - b), params, again)):
        if wide.max(initial=0) > 0:
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise ValueError(f"{where} must be zero in the units that are cut off; got {wide.max():.3g}.")
