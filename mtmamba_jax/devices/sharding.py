"""Which devices hold what: the batch is split over all, large arrays of the state over some."""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtmamba_jax.array_types import Batch

FSDP_AXIS = "fsdp"
BATCH_AXES = ("data", FSDP_AXIS)
"""Of a mesh: the batch is split over both, the state over the second."""

GPU_OPTIONS = {
    # A bfloat16 result that is read twice is written as bfloat16, not as a wider float32.
    "xla_allow_excess_precision": False,
    # Arrays move from call to call, and a recorded graph of kernels is then written again each
    # time: launching them one by one is sooner done.
    "xla_gpu_enable_command_buffer": "",
}
"""Of XLA."""

_COPIES_OPTIONS = {
    # It holds all updates of weights back to the end of a step, hundreds of small kernels that the
    # GPUs then wait for. Sums between GPUs of one host leave next to nothing to hide.
    "xla_gpu_enable_latency_hiding_scheduler": False,
}
"""Of XLA, for several GPUs of one process that each hold the whole state."""


def compiler_options(platform: str) -> dict[str, bool | str]:
    """Returns the options of XLA that the model is compiled with for "cpu", "gpu" or "tpu"."""
    return GPU_OPTIONS if platform == "gpu" else {}


def mesh_compiler_options(mesh: Mesh) -> dict[str, bool | str]:
    """Returns the options of XLA that the model is compiled with for the devices of a mesh."""
    devices = list(mesh.devices.flat)
    options = compiler_options(devices[0].platform)
    one_process = len({device.process_index for device in devices}) == 1
    copies = len(devices) > 1 and mesh.shape[FSDP_AXIS] == 1
    if devices[0].platform == "gpu" and one_process and copies:
        return options | _COPIES_OPTIONS
    return options


def create_mesh(
    *batch_sizes: int,
    data: int = -1,
    fsdp: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Returns a mesh `BATCH_AXES` of data x fsdp devices.

    Args:
      batch_sizes: of all batches that will be split over the mesh.
      data: parts that only the batch is split into; -1 is the most that there are devices for and
        that, times fsdp, divide each of the batch sizes.
      fsdp: parts that the state is split into, and the batch too.
      devices: to take them from; None is all that there are.

    Raises:
      ValueError: too few devices, a batch that does not split over them, or several processes and
        devices that are left out.
    """
    devices = jax.devices() if devices is None else devices
    common = math.gcd(*batch_sizes)
    sizes = " and ".join(map(str, sorted(set(batch_sizes))))
    wanted = range(1, len(devices) // fsdp + 1) if data == -1 else [data]
    found = max((n for n in wanted if common % (n * fsdp) == 0), default=0)
    count = found * fsdp
    if not 0 < count <= len(devices):
        raise ValueError(
            f"mesh.data={data} and mesh.fsdp={fsdp} do not fit {len(devices)} devices and batches "
            f"of {sizes}: data x fsdp must be at most the first and divide the others."
        )
    if count < len(devices):
        left = (
            f"{count} of {len(devices)} devices: batches of {sizes} split over no more"
            if data == -1
            else f"{count} of {len(devices)} devices, as mesh.data and mesh.fsdp say"
        )
        if jax.process_count() > 1:
            raise ValueError(f"{jax.process_count()} processes would use {left}. All must be used.")
        logging.getLogger(__name__).warning("Using %s.", left)
    # Slices of TPUs are tori of two or three axes, of which `fsdp` may be a part of one.
    grid = mesh_utils.create_device_mesh(
        (found, fsdp), devices[:count], allow_split_physical_axes=True
    )
    # Auto: the compiler places what is in between. Explicit axes reject Swin's window reshape.
    return Mesh(grid, BATCH_AXES, axis_types=(AxisType.Auto,) * len(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the layout of what is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_longest(shape: Sequence[int], parts: int) -> PartitionSpec:
    """Splits the longest axis that divides; none where there is none."""
    axes = [i for i, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda i: shape[i])
    return PartitionSpec(*[None] * longest, FSDP_AXIS)


def keep_whole(shape: Sequence[int], parts: int) -> PartitionSpec:
    """Splits nothing: what is small costs more in messages than it takes in memory."""
    del shape, parts
    return PartitionSpec()


STATE_RULES: tuple[tuple[str, Callable[[Sequence[int], int], PartitionSpec]], ...] = (
    (r"(^|/)(kernel|projection|in_proj_shared|step_weight|log_a)$", split_longest),
    (r"", keep_whole),
)
"""How arrays of the state are split over FSDP_AXIS, by their name; the first match counts."""


def split_state(tree, mesh: Mesh):
    """Returns the layout of each array of a state, parameters or optimizer state.

    Args:
      tree: of arrays or their shapes.
      mesh: of `create_mesh`.
    """

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rule = next(rule for pattern, rule in STATE_RULES if re.search(pattern, name))
        return NamedSharding(mesh, rule(leaf.shape, mesh.shape[FSDP_AXIS]))

    return jax.tree_util.tree_map_with_path(place, tree)


def split_batch(mesh: Mesh) -> NamedSharding:
    """Returns the layout of a batch: its leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_axes() -> tuple[str, ...]:
    """Returns the axes of the mesh in context that a batch is split over, none outside `jit_on`."""
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    # Inside a shard_map an axis is Manual: what is seen there is one device's share already.
    return tuple(axis for axis in BATCH_AXES if types.get(axis) == AxisType.Auto)


def jit_on(mesh: Mesh, function: Callable, **options) -> Callable:
    """Returns `jax.jit(function, **options)`, traced and run with `mesh` in context.

    Its `lower(*args)` is jax's, in the same context.
    """
    options = {"compiler_options": mesh_compiler_options(mesh)} | options
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
