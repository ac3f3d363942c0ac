"""Work split over devices: the samples of a batch, or the members of a sweep, along the one axis of a mesh.

Devices are counted over all processes. Where ``jax.distributed`` has started, every process runs the same program and
all their devices take part; what is not split is whole on each of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mgu_jax import checks

AXIS = "split"
Result = TypeVar("Result")


def mesh_of(devices: Any, what: str, count: int) -> Mesh | None:
    """The devices that count things are split over; ``None`` for one device.

    Raises:
        ValueError: more devices than there are or, of several processes, fewer; or a number that does not divide count.
    """
    checks.check_size("devices", devices)
    there, processes = jax.device_count(), jax.process_count()
    if devices > there:
        raise ValueError(f"devices must be at most the {there} that there are; got {devices}.")
    if processes > 1 and devices != there:
        raise ValueError(f"devices must be all {there} of the {processes} processes; got {devices}.")
    if count % devices:
        raise ValueError(f"devices must divide the {count} {what}; got {devices}.")
    return None if devices == 1 else jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,))


def put(tree: Any, mesh: Mesh | None, *axes: str | None) -> Any:
    """Arrays onto the devices: whole on each, or split where one of ``axes`` is ``AXIS``."""
    if mesh is None:
        split = any(isinstance(a, jax.Array) and len(a.sharding.device_set) > 1 for a in jax.tree.leaves(tree))
        return jax.device_put(tree, jax.local_devices()[0] if split else None)
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda a: _put_by_all(a, sharding), tree)


def _put_by_all(a: Any, sharding: NamedSharding) -> jax.Array:
    """``device_put`` of what every process has alike; JAX's own takes an array of one process to no other's devices."""
    if isinstance(a, jax.Array):
        if not a.is_fully_addressable:
            return jax.device_put(a, sharding)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            data = _put_by_all(jax.random.key_data(a), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(a))
    whole = np.asarray(a)
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def keep(tree: Any, mesh: Mesh | None, *axes: str | None) -> Any:
    """``put`` inside of a compiled function."""
    return tree if mesh is None else lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(*axes)))


def put_parts(tree: Any, mesh: Mesh | None, *axes: str | None) -> Any:
    """Arrays of which each process has a part, put together."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), tree)


def map_members(function: Callable[[Any, Any], Any], members: Any, shared: Any, at_once: int | None, mesh: Any) -> Any:
    """``function(shared, member)`` of all members [M, ...]: so many at once under ``vmap``, all if ``None``.

    On a mesh each device has members of its own, and nothing to say to the others.
    """

    def all_of_them(members: Any, shared: Any) -> Any:
        count = len(jax.tree.leaves(members)[0])
        return lax.map(partial(function, shared), members, batch_size=min(at_once or count, count))

    if mesh is not None:
        specs = (PartitionSpec(AXIS), PartitionSpec())
        all_of_them = jax.shard_map(all_of_them, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
    return all_of_them(members, shared)


def one_copy(tree: Any) -> Any:
    """Of arrays that are whole on every device, those of the first device of this process."""
    return jax.tree.map(lambda a: a.addressable_data(0) if isinstance(a, jax.Array) else a, tree)


def agreed(values: list[float]) -> list[float]:
    """What the first process has, for all: those of the others may differ in the last bit, and part with it there."""
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
    """As NumPy arrays, also what is split over several processes."""

    def one(a: Any) -> np.ndarray:
        if isinstance(a, jax.Array) and not (a.is_fully_addressable or a.is_fully_replicated):
            return np.asarray(multihost_utils.process_allgather(a, tiled=True))
        return np.asarray(jax.device_get(a))

    return jax.tree.map(one, tree)
