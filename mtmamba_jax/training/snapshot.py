"""A copy of a state, which is saved from there while training goes on."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

HOST_MEMORY = "pinned_host"


def snapshot(tree):
    """Returns a copy of arrays: on their devices where there is room, else in the host's memory.

    It returns before the copies are made; a program that takes over an array's memory afterwards
    waits for them: milliseconds within a device's memory, a second and more for gigabytes to the
    host's. What several devices hold alike (along the mesh's first axis) is copied by the first.

    Args:
      tree: of arrays, all of this process's devices. Those that lie on no mesh are copied at once.
    """
    arrays, structure = jax.tree.flatten(tree)
    meshed = [array for array in arrays if isinstance(_sharding(array), NamedSharding)]
    parts = [_first_copy(array) for array in meshed]
    memory = None if _fits([part for found in parts for part in found]) else HOST_MEMORY
    places = [
        [SingleDeviceSharding(part.device, memory_kind=memory) for part in found] for found in parts
    ]
    copies = iter(
        jax.make_array_from_single_device_arrays(array.shape, _layout(array, memory), found)
        for array, found in zip(meshed, jax.device_put(parts, places, may_alias=False), strict=True)
    )
    found = [
        next(copies) if isinstance(_sharding(array), NamedSharding) else np.array(array)
        for array in arrays
    ]
    return jax.tree.unflatten(structure, found)


def _sharding(array):
    return getattr(array, "sharding", None)


def _first_copy(array: jax.Array) -> list[jax.Array]:
    """Returns the parts on the first devices of the mesh that hold all of an array."""
    devices = set(array.sharding.mesh.devices[0].flat)
    return [shard.data for shard in array.addressable_shards if shard.device in devices]


def _layout(array: jax.Array, memory: str | None) -> NamedSharding:
    mesh = array.sharding.mesh
    first = Mesh(mesh.devices[:1], mesh.axis_names, axis_types=mesh.axis_types)
    return NamedSharding(first, array.sharding.spec, memory_kind=memory)


def _fits(parts: list[jax.Array]) -> bool:
    """Says whether devices have room for copies, beside all that they have held at once so far."""
    needed: dict[jax.Device, int] = {}
    for part in parts:
        needed[part.device] = needed.get(part.device, 0) + part.nbytes
    return all(_free(device) > size for device, size in needed.items())


def _free(device: jax.Device) -> float:
    stats = device.memory_stats()  # None of a CPU, whose memory is the host's anyway
    return stats["bytes_limit"] - stats["peak_bytes_in_use"] if stats else float("inf")
