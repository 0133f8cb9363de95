"""Sharding: the batch is split over all devices, large arrays of the state over some."""

import functools
import logging
import math
import re
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtmamba_jax.array_types import Batch
from mtmamba_jax.kernels.platform_check import compiled_for, platform_of
from mtmamba_jax.messages import counted

FSDP_AXIS = "fsdp"
BATCH_AXES = ("data", FSDP_AXIS)
"""Axes of a mesh: the batch is split over both, the state over the second."""

_GPU_OPTIONS = {
    # Stores a bfloat16 result that is read twice as bfloat16, not as float32.
    "xla_allow_excess_precision": False,
    # Buffers move between calls, and a CUDA graph would be updated each time: launching the kernels
    # one by one is faster.
    "xla_gpu_enable_command_buffer": "",
    # Else XLA times Triton's matrix products against cuBLAS's. Swin-Large's inference, batch 8,
    # compiles in 9 s instead of 41, and takes 61.0 ms instead of 62.4 (H200, jax 0.11.2).
    "xla_gpu_enable_triton_gemm": False,
}

# For several GPUs of one process, each with a copy of the whole state.
_REPLICATED_OPTIONS = {
    # This scheduler delays all weight updates, hundreds of small kernels, to the end of the step,
    # where the GPUs wait for them. All-reduces within one host leave little latency to hide.
    "xla_gpu_enable_latency_hiding_scheduler": False,
}


def compiler_options(platform: str) -> dict[str, bool | str]:
    """Returns the XLA options to compile the model with, for "cpu", "gpu" or "tpu"."""
    return _GPU_OPTIONS if platform == "gpu" else {}


def mesh_compiler_options(mesh: Mesh) -> dict[str, bool | str]:
    """Returns the XLA options to compile the model with, for the devices of a mesh."""
    devices = list(mesh.devices.flat)
    platform = devices[0].platform
    one_process = len({device.process_index for device in devices}) == 1
    copies = len(devices) > 1 and mesh.shape[FSDP_AXIS] == 1
    replicated_options = _REPLICATED_OPTIONS if platform == "gpu" and one_process and copies else {}
    return compiler_options(platform) | replicated_options


def create_mesh(
    *batch_sizes: int,
    data: int = -1,
    fsdp: int = 1,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm] of C++
) -> Mesh:
    """Returns a mesh of data x fsdp devices, with axes `BATCH_AXES`.

    Args:
      *batch_sizes: Sizes of all batches that will be split over the mesh.
      data: Number of copies of the state, each with a part of the batch; -1 for the most that the
        number of devices allows and that, times fsdp, divides every batch size.
      fsdp: Number of devices that share one copy of the state, and its part of the batch.
      devices: Devices to choose from; None for all.

    Raises:
      ValueError: If there are too few devices, if a batch does not split over them, or if several
        processes would leave devices unused.
    """
    devices = jax.devices() if devices is None else devices
    common = math.gcd(*batch_sizes)
    sizes = " and ".join(map(str, sorted(set(batch_sizes))))
    wanted = range(1, len(devices) // fsdp + 1) if data == -1 else [data]
    found = max((n for n in wanted if common % (n * fsdp) == 0), default=0)
    count = found * fsdp
    if not 0 < count <= len(devices):
        raise ValueError(
            f"mesh.data={data} and mesh.fsdp={fsdp} do not fit {counted(len(devices), 'device')} "
            f"and batches of {sizes}: data x fsdp must not exceed the devices and must divide the "
            "batch sizes."
        )
    if count < len(devices):
        reason = (
            f": batches of {sizes} split over no more"
            if data == -1
            else ", as set by mesh.data and mesh.fsdp"
        )
        left = f"{count} of {len(devices)} devices{reason}"
        if jax.process_count() > 1:
            raise ValueError(f"{jax.process_count()} processes would use {left}. All must be used.")
        logging.getLogger(__name__).warning("Using %s.", left)
    # TPU slices are tori of two or three axes; `fsdp` may be part of one axis.
    grid = mesh_utils.create_device_mesh(
        (found, fsdp), devices[:count], allow_split_physical_axes=True
    )
    # Auto: the compiler chooses shardings of intermediates. Explicit axes reject Swin's windows.
    return Mesh(grid, BATCH_AXES, axis_types=(AxisType.Auto,) * len(BATCH_AXES))


def single_device_mesh() -> Mesh:
    """Returns the mesh of this process's first device."""
    return create_mesh(1, devices=jax.local_devices()[:1])


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_longest(shape: Sequence[int], parts: int) -> PartitionSpec:
    """Splits the longest axis that `parts` divides, if there is one."""
    axes = [i for i, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda i: shape[i])
    return PartitionSpec(*[None] * longest, FSDP_AXIS)


SPLIT = re.compile(r"(^|/)(kernel|projection|in_proj_shared|step_weight|log_a)$")
"""Names of the arrays of the state that are split over FSDP_AXIS, by `split_longest`.

Sharing the others, which are small, would cost more communication than it saves memory.
"""


def state_sharding(tree, mesh: Mesh):
    """Returns the sharding of each array of a state, given the arrays or their shapes."""

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        parts = mesh.shape[FSDP_AXIS] if SPLIT.search(name) else 1
        return NamedSharding(mesh, split_longest(leaf.shape, parts))

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch, whose leading axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_axes() -> tuple[str, ...]:
    """Returns the axes of the current mesh that a batch is split over; none outside `jit_on`."""
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    # Inside a shard_map an axis is Manual: arrays there are one device's part already. One device
    # needs no shard_map, whose tracing takes as long as that of all the rest.
    return tuple(
        axis for axis in BATCH_AXES if types.get(axis) == AxisType.Auto and mesh.shape[axis] > 1
    )


class MeshFunction:
    """A jitted function that is traced and run with a mesh in context; see `jit_on`.

    Only the code for the mesh's platform is traced: it cannot be lowered for another.
    """

    def __init__(self, mesh: Mesh, jitted: jax.stages.Wrapped):
        self._mesh, self._jitted = mesh, jitted
        self._platform = platform_of(mesh.devices.flat[0])

    def __call__(self, *args):
        """Runs the function."""
        with jax.set_mesh(self._mesh), compiled_for(self._platform):
            return self._jitted(*args)

    def lower(self, *args) -> jax.stages.Lowered:
        """Lowers the function for arguments or their shapes."""
        with jax.set_mesh(self._mesh), compiled_for(self._platform):
            return self._jitted.lower(*args)


def jit_on(mesh: Mesh, function: Callable, **options) -> MeshFunction:
    """Returns `jax.jit(function, **options)`, traced and run with `mesh` in context."""
    jitted = jax.jit(function, compiler_options=mesh_compiler_options(mesh), **options)
    return MeshFunction(mesh, jitted)


def put_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Returns this process's part of a batch as global arrays, without text."""
    put = functools.partial(jax.make_array_from_process_local_data, batch_sharding(mesh))
    return {key: put(value) for key, value in device_arrays(batch).items()}


def device_arrays(batch: Batch) -> Batch:
    """Returns the arrays of a batch that belong on devices: all but text."""
    return {k: v for k, v in batch.items() if np.issubdtype(v.dtype, np.number) or v.dtype == bool}
