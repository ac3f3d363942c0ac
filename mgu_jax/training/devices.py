"""Work split over devices: the samples of a batch, or the members of a sweep, along the one axis of a mesh.

Devices are counted over all processes. After ``jax.distributed.initialize``, every process runs the same program on all
devices together. An array that is not split is whole on every device.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mgu_jax import checks

AXIS = "split"
P = ParamSpec("P")
Result = TypeVar("Result")


def on_own_devices(function: Callable[P, Result]) -> Callable[P, Result]:
    """The function, outside of the caller's ``jax.set_mesh``: it makes its mesh itself, by its argument ``devices``."""

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> Result:
        inside = not jax.sharding.get_abstract_mesh().empty
        with jax.set_mesh(None) if inside else nullcontext():  # pyright: ignore (None is no mesh)
            arguments, options = jax.tree.map(_without_mesh, (arguments, options), is_leaf=_is_iterator)
            return function(*arguments, **options)

    return call


def _is_iterator(value: Any) -> bool:
    return isinstance(value, Iterator)  # of which jax.tree.map would warn, before we refuse it


def _without_mesh(a: Any) -> Any:
    """The same array on one device, if its type names the explicit axes of a mesh; ``device_put`` would keep those."""
    if not isinstance(a, jax.Array) or not jax.typeof(a).sharding.mesh.explicit_axes or not a.is_fully_addressable:
        return a
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_without_mesh(jax.random.key_data(a)), impl=jax.random.key_impl(a))
    return jnp.asarray(np.asarray(a))


def mesh_of(devices: Any, what: str, count: int) -> Mesh | None:
    """The mesh of the devices over which ``count`` items are split; ``None`` for one device.

    Raises:
        ValueError: more devices than exist; several processes and not all their devices; or devices that do not divide
            ``count``.
    """
    checks.check_size("devices", devices)
    available, processes = jax.device_count(), jax.process_count()
    if devices > available:
        raise ValueError(f"devices must be at most {available}, the number available; got {devices}.")
    if processes > 1 and devices != available:
        raise ValueError(f"devices must be {available}, all those of the {processes} processes; got {devices}.")
    if count % devices:
        raise ValueError(f"devices must divide the {count} {what}; got {devices}.")
    return None if devices == 1 else jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,))


def put(tree: Any, mesh: Mesh | None, *axes: str | None) -> Any:
    """The arrays on the devices: whole on each, or split along the axis that ``axes`` names ``AXIS``."""
    if mesh is None:
        split = any(isinstance(a, jax.Array) and len(a.sharding.device_set) > 1 for a in jax.tree.leaves(tree))
        return jax.device_put(tree, jax.local_devices()[0] if split else None)
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda a: _put_by_all(a, sharding), tree)


def _put_by_all(a: Any, sharding: NamedSharding) -> jax.Array:
    """``device_put`` of an array that is equal in every process. JAX's own cannot reach another process's devices."""
    if isinstance(a, jax.Array):
        if not a.is_fully_addressable:
            return jax.device_put(a, sharding)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            data = _put_by_all(jax.random.key_data(a), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(a))
    whole = np.asarray(a)
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def put_parts(tree: Any, mesh: Mesh | None, *axes: str | None) -> Any:
    """Global arrays on the devices, joined from the part that each process has."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), tree)


def constrain(tree: Any, mesh: Mesh | None, *axes: str | None) -> Any:
    """``put`` inside a compiled function."""
    return tree if mesh is None else lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(*axes)))


def map_members(
    function: Callable[[Any, Any], Any],
    members: Any,
    shared: Any,
    at_once: int | None,
    mesh: Any,
    skipped: Any = None,
) -> Any:
    """``function(shared, member)`` of all members [M, ...], ``at_once`` of them under ``vmap``; all if ``None``.

    Where ``skipped`` is true, bool [M], the results are meaningless. If ``at_once`` divides the members into rounds,
    the others come first, and there are as few rounds as they need. On a mesh, each device computes its own members
    without communication.
    """

    def map_part(members: Any, skipped: Any, shared: Any) -> Any:
        count = len(jax.tree.leaves(members)[0])
        size, one = min(at_once or count, count), partial(function, shared)
        if skipped is None or size == count:
            return lax.map(one, members, batch_size=size)
        # Those to compute come first; the last ones are repeated to fill the last ``size``.
        order = jnp.pad(jnp.argsort(skipped, stable=True), (0, -count % size), mode="edge").astype(jnp.int32)
        together = jax.vmap(one)
        shapes = jax.eval_shape(together, jax.tree.map(lambda a: a[:size], members))

        def compute(i: Array, results: Any) -> Any:
            which = lax.dynamic_slice_in_dim(order, i * size, size)
            new = together(jax.tree.map(lambda a: a[which], members))
            return jax.tree.map(lambda all_of, a: all_of.at[which].set(a), results, new)

        rounds = (jnp.sum(~skipped, dtype=jnp.int32) + size - 1) // size
        empty = jax.tree.map(lambda s: lax.full((count, *s.shape[1:]), 0, s.dtype), shapes)
        return lax.fori_loop(0, rounds, compute, empty)

    if mesh is None:
        return map_part(members, skipped, shared)
    split, whole = PartitionSpec(AXIS), PartitionSpec()
    specs = {"in_specs": (split, split, whole), "out_specs": split}
    return jax.shard_map(map_part, mesh=mesh, check_vma=False, **specs)(members, skipped, shared)


def one_copy(tree: Any) -> Any:
    """The copy on this process's first device of arrays that are whole on every device."""
    return jax.tree.map(lambda a: a.addressable_data(0) if isinstance(a, jax.Array) else a, tree)


def from_first_process(values: list[float]) -> list[float]:
    """The first process's values, broadcast to all. Others may differ in the last bit and would then branch apart."""
    return values if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(np.array(values)).tolist()


def together(work: Callable[[], Result]) -> Result:
    """``work()``, after which all processes meet. If it fails in one of them, all raise, so that none waits for ever.

    Raises:
        OSError: it failed in another process alone.
    """
    if jax.process_count() == 1:
        return work()
    try:
        result, error = work(), None
    except Exception as raised:
        result, error = None, raised
    failed = np.flatnonzero(multihost_utils.process_allgather(np.array(error is not None)))
    if error is not None:
        raise error
    if failed.size:
        raise OSError(f"all processes must succeed; process {failed[0]} raised an error.")
    return result  # pyright: ignore (there was no error)


def to_host(tree: Any) -> Any:
    """The arrays as NumPy arrays, also those that are split over several processes."""

    def one(a: Any) -> np.ndarray:
        if isinstance(a, jax.Array) and not (a.is_fully_addressable or a.is_fully_replicated):
            return np.asarray(multihost_utils.process_allgather(a, tiled=True))
        return np.asarray(jax.device_get(a))

    return jax.tree.map(one, tree)
