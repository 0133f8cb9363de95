"""A copy of a state, which is saved from there while training goes on."""

from __future__ import annotations

import collections
import functools
import math
import weakref
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from mtmamba_jax.devices.sharding import jit_on

HOST_MEMORY = "pinned_host"
_SLACK = 0.05  # of a device's memory, which is in pieces


class Snapshots:
    """Takes copies of a state: on its devices where there is room, else in the host's memory."""

    def __init__(self):
        self._on_devices: list[weakref.ref] = []  # arrays of copies, some of them gone by now

    def take(self, tree):
        """Returns a copy of arrays.

        It returns before the copies are made; a program that takes over an array's memory
        afterwards waits for them: milliseconds within a device's memory, a second and more for
        gigabytes to the host's. In the host's memory, what several devices hold alike (along the
        mesh's first axis) is there once.

        Args:
          tree: of arrays, all of this process's devices. Those that lie on no mesh are copied at
            once.
        """
        arrays, structure = jax.tree.flatten(tree)
        remaining = iter(self._copies([array for array in arrays if _is_on_mesh(array)]))
        found = [next(remaining) if _is_on_mesh(array) else np.array(array) for array in arrays]
        return jax.tree.unflatten(structure, found)

    def _copies(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        if not arrays:
            return []
        if not self._fit(arrays):
            return _copies_on_host(arrays)
        copies = _copying(arrays[0].sharding.mesh)(arrays)
        self._on_devices.extend(map(weakref.ref, copies))
        return copies

    def _fit(self, arrays: Sequence[jax.Array]) -> bool:
        """Says whether devices have room for copies, beside the most that they have held so far.

        Earlier copies that they hold still come on top: that most may be of a time before them. One
        that is gone may be part of it, so that the last few gigabytes are left free: slower, but
        sure.
        """
        self._on_devices = [copy for copy in self._on_devices if _is_held(copy())]
        needed: collections.Counter[jax.Device] = collections.Counter()
        for array in [*(copy() for copy in self._on_devices), *arrays]:
            for device in array.sharding.device_set:
                needed[device] += _bytes_on_each(array)
        return all(_free(device) > size for device, size in needed.items())


def _is_on_mesh(array) -> bool:
    return isinstance(getattr(array, "sharding", None), NamedSharding)


@functools.cache
def _copying(mesh: Mesh) -> Callable[[Sequence[jax.Array]], list[jax.Array]]:
    """Returns a program that copies arrays where they lie: for a thousand, one call is far sooner
    made than a thousand."""
    return jit_on(mesh, lambda arrays: [jnp.copy(array) for array in arrays])


def _copies_on_host(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    parts = [_first_copy(array) for array in arrays]
    places = [
        [SingleDeviceSharding(part.device, memory_kind=HOST_MEMORY) for part in found]
        for found in parts
    ]
    return [
        jax.make_array_from_single_device_arrays(array.shape, _layout(array), found)
        for array, found in zip(arrays, jax.device_put(parts, places, may_alias=False), strict=True)
    ]


def _first_copy(array: jax.Array) -> list[jax.Array]:
    """Returns the parts on the first devices of the mesh that hold all of an array."""
    devices = set(array.sharding.mesh.devices[0].flat)
    return [shard.data for shard in array.addressable_shards if shard.device in devices]


def _layout(array: jax.Array) -> NamedSharding:
    mesh = array.sharding.mesh
    first = Mesh(mesh.devices[:1], mesh.axis_names, axis_types=mesh.axis_types)
    return NamedSharding(first, array.sharding.spec, memory_kind=HOST_MEMORY)


def _is_held(array: jax.Array | None) -> bool:
    return array is not None and not array.is_deleted()


def _bytes_on_each(array: jax.Array) -> int:
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def _free(device: jax.Device) -> float:
    stats = device.memory_stats()
    if not stats:  # of a CPU, whose memory is the host's anyway
        return float("inf")
    # Where no limit is known there may be none left.
    return (1 - _SLACK) * stats.get("bytes_limit", 0) - stats.get("peak_bytes_in_use", 0)
