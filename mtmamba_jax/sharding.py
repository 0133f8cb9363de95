"""Which devices hold what: the batch is split over all of them, the state is on each."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtmamba_jax.array_types import Batch

DATA_AXIS = "data"

GPU_OPTIONS = {
    # A bfloat16 result that is read twice is written as bfloat16, not as a wider float32.
    "xla_allow_excess_precision": False,
    # Arrays move from call to call, and a recorded graph of kernels is then written again each
    # time: launching them one by one is sooner done.
    "xla_gpu_enable_command_buffer": "",
}
"""Of XLA."""


def compiler_options(platform: str) -> dict[str, bool | str]:
    """Returns the options of XLA that the model is compiled with for "cpu", "gpu" or "tpu"."""
    return GPU_OPTIONS if platform == "gpu" else {}


def create_mesh(*batch_sizes: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of as many devices as divide each of the batch sizes.

    Args:
      batch_sizes: of all batches that will be split over the mesh.
      devices: to take them from; None is all that there are.

    Raises:
      ValueError: several processes, and a batch does not split over all their devices.
    """
    devices = jax.devices() if devices is None else devices
    common = math.gcd(*batch_sizes)
    count = max(n for n in range(1, len(devices) + 1) if common % n == 0)
    sizes = " and ".join(map(str, sorted(set(batch_sizes))))
    if count < len(devices):
        if jax.process_count() > 1:
            raise ValueError(
                f"Batches of {sizes} do not split over {len(devices)} devices of "
                f"{jax.process_count()} processes. Use multiples of {len(devices)}."
            )
        logging.getLogger(__name__).warning(
            "Using %d of %d devices: batches of %s split over no more.", count, len(devices), sizes
        )
    # Auto: the compiler places what is in between. Explicit axes reject Swin's window reshape.
    return jax.make_mesh(
        (count,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices[:count]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the layout of state and scalars: whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Returns the layout of a batch: its leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def batch_axes() -> tuple[str, ...]:
    """Returns the axes of the mesh in context that a batch is split over, none outside `jit_on`."""
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    # Inside a shard_map the axis is Manual: what is seen there is one device's share already.
    return (DATA_AXIS,) if types.get(DATA_AXIS) == AxisType.Auto else ()


def jit_on(mesh: Mesh, function: Callable, **options) -> Callable:
    """Returns `jax.jit(function, **options)`, traced and run with `mesh` in context.

    Its `lower(*args)` is jax's, in the same context.
    """
    options = {"compiler_options": compiler_options(mesh.devices.flat[0].platform)} | options
    compiled = jax.jit(function, **options)

    def in_context(call):
        @functools.wraps(function)
        def run(*args):
            with jax.set_mesh(mesh):
                return call(*args)

        return run

    run = in_context(compiled)
    run.lower = in_context(compiled.lower)
    return run


def put_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Returns this process's share of a batch as global arrays; text stays behind."""
    sharding = split_batch(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, value)
        for key, value in on_device(batch).items()
    }


def on_device(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of a batch that go to the devices: all but text."""
    return {
        key: value
        for key, value in batch.items()
        if np.issubdtype(value.dtype, np.number) or value.dtype == bool
    }
