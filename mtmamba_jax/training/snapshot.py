"""A copy of a state, which is saved from there while training goes on."""

from __future__ import annotations

import collections
import weakref

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

HOST_MEMORY = "pinned_host"
_SLACK = 0.05  # of a device's memory, which is in pieces
_copies: list[weakref.ref] = []
"""What was copied within devices' memory; some of it is gone."""


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
    copies = [
        jax.make_array_from_single_device_arrays(array.shape, _layout(array, memory), found)
        for array, found in zip(meshed, jax.device_put(parts, places, may_alias=False), strict=True)
    ]
    if memory is None:
        _copies.extend(map(weakref.ref, copies))
    remaining = iter(copies)
    found = [
        next(remaining) if isinstance(_sharding(array), NamedSharding) else np.array(array)
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
    """Says whether devices have room for copies, beside the most that they have held so far.

    Earlier copies that they hold still come on top: that most may be of a time before them.
    """
    _copies[:] = [copy for copy in _copies if copy() is not None]
    held = [shard.data for copy in _copies for shard in _shards(copy())]
    needed: collections.Counter[jax.Device] = collections.Counter()
    for part in [*held, *parts]:
        needed[part.device] += part.nbytes
    return all(_free(device) > size for device, size in needed.items())


def _shards(array: jax.Array | None) -> list[jax.Shard]:
    gone = array is None or array.is_deleted()
    return [] if gone else array.addressable_shards


def _free(device: jax.Device) -> float:
    stats = device.memory_stats()
    if not stats:  # of a CPU, whose memory is the host's anyway
        return float("inf")
    # Where no limit is known there may be none left.
    return (1 - _SLACK) * stats.get("bytes_limit", 0) - stats.get("peak_bytes_in_use", 0)
