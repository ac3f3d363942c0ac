"""Meshes with explicit axes (the default of ``jax.make_mesh``), whose arrays carry their sharding in their types.

On such a mesh JAX asks for the sharding of each result where it does not follow from the operands, as in a product that
sums over the samples, and a loop keeps the sharding of its carry. ``automatic`` runs a function with these axes left to
XLA, as on a mesh of ``AxisType.Auto``, and gives the results shardings that follow from those of the arguments.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec


def automatic(function: Callable[..., Any], arguments: tuple[Any, ...], placed: Callable[..., Any]) -> Any:
    """``function(*arguments)``, with every explicit axis of the mesh made automatic inside.

    Args:
        function: takes the arguments, and uses no other array.
        arguments: pytrees. Leaves that are not JAX arrays are passed through as they are.
        placed: takes the arguments too, and gives the ``PartitionSpec`` of each result: a pytree, or the beginning of
            one.
    """
    leaves, tree = jax.tree.flatten(arguments)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    mesh = _explicit_mesh(arrays)
    if mesh is None:
        return function(*arguments)

    def inside(*arrays: Any) -> Any:
        given = iter(arrays)
        return function(*tree.unflatten([next(given) if isinstance(leaf, jax.Array) else leaf for leaf in leaves]))

    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), placed(*arguments), is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )
    return jax.sharding.auto_axes(inside, axes=mesh.explicit_axes, out_sharding=shardings)(*arrays)


def _explicit_mesh(arrays: list[Any]) -> AbstractMesh | None:
    """The mesh of the context or of an array, if it has explicit axes."""
    for mesh in (jax.sharding.get_abstract_mesh(), *(jax.typeof(a).sharding.mesh for a in arrays)):
        if mesh.explicit_axes:
            return mesh
    return None


def spec(array: Any) -> tuple[Any, ...]:
    """What each axis of an array is split over, or ``None`` for an axis that is not split; ``()`` for no array."""
    if not isinstance(array, jax.Array):
        return (None,) * getattr(array, "ndim", 0)
    entries = jax.typeof(array).sharding.spec
    return (*entries, *[None] * (array.ndim - len(entries)))


def merged(*specs: tuple[Any, ...]) -> tuple[Any, ...]:
    """For each axis, the first of the given entries that is not ``None``; no axis of the mesh is used twice."""
    used, entries = set(), []
    for axis in range(max(map(len, specs), default=0)):
        for entry in (given[axis] for given in specs if axis < len(given)):
            names = set(entry) if isinstance(entry, tuple) else {entry}
            if entry is not None and not names & used:
                used |= names
                entries.append(entry)
                break
        else:
            entries.append(None)
    return tuple(entries)


def varies_over(a: Array) -> frozenset[str]:
    """The mesh axes of ``jax.shard_map`` over which an array varies, as far as JAX keeps account (check_vma)."""
    return jax.typeof(a).manual_axis_type.varying


def vary_alike(tree: Any) -> Any:
    """The same arrays, which all vary over the mesh axes of ``jax.shard_map`` that any of them varies over.

    Loops require this. An array that was the same on all devices, such as a parameter, gets the sum over the devices as
    its gradient.
    """

    axes = frozenset[str]().union(*map(varies_over, jax.tree.leaves(tree)))

    def cast(a: Array) -> Array:
        missing = tuple(sorted(axes - varies_over(a)))
        return lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(cast, tree)
