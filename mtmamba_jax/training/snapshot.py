"""A copy of a state in the host's memory, which is saved from there while training goes on."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

MEMORY = "pinned_host"
"""Kind of memory that devices copy to beside their work."""


def snapshot(tree):
    """Returns a copy of arrays in the host's memory.

    It returns before the copies are made; a program that takes over an array's memory afterwards
    waits for them. Copies of a state that several devices hold alike (the mesh's first axis) are
    made by the first.

    Args:
      tree: of arrays, all of this process's devices. Those that lie on no mesh are copied at once.
    """
    arrays, structure = jax.tree.flatten(tree)
    meshed = [array for array in arrays if isinstance(_sharding(array), NamedSharding)]
    parts = [_first_copy(array) for array in meshed]
    places = [
        [SingleDeviceSharding(part.device, memory_kind=MEMORY) for part in found] for found in parts
    ]
    copies = iter(
        jax.make_array_from_single_device_arrays(array.shape, _layout(array), found)
        for array, found in zip(meshed, jax.device_put(parts, places), strict=True)
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


def _layout(array: jax.Array) -> NamedSharding:
    mesh = array.sharding.mesh
    first = Mesh(mesh.devices[:1], mesh.axis_names, axis_types=mesh.axis_types)
    return NamedSharding(first, array.sharding.spec, memory_kind=MEMORY)
