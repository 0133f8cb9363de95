"""Devices to compile for that this machine does not have, such as `v5e:4x4` or `h200:8`."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import topologies

from mtmamba_jax.devices.chips import CHIPS, Chip
from mtmamba_jax.kernels.ss2d.analysis.topology import find_tpus, stay_on_cpu
from mtmamba_jax.messages import check_name


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A kind of TPU.

    Attributes:
      chip: Key of `CHIPS`.
      dimensions: Dimensions of a shape in chips.
      shapes: Shapes in chips that Cloud TPU offers; libtpu supports more.
    """

    chip: str
    dimensions: int
    shapes: str


_FLAT = "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16"
_CUBES = "2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8 and larger"

TPUS = {
    "v4": Tpu("TPU v4", 3, _CUBES),
    "v5e": Tpu("TPU v5 lite", 2, _FLAT),
    "v5p": Tpu("TPU v5", 3, _CUBES),
    "v6e": Tpu("TPU v6 lite", 2, _FLAT),
    "tpu7x": Tpu("TPU7x", 3, _CUBES),
}
GPUS = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}
"""Keys of `CHIPS`."""

# The properties that XLA queries from a driver: those of compute capability 9.0, from CUDA's C++
# Programming Guide (table of features and technical specifications), and those of the chip.
_GPU_TARGET = """
platform_name: "CUDA"
device_description_str: "{name}"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  fpus_per_core: 128
  l2_cache_size: 52428800
  core_count: {chip.multiprocessors}
  clock_rate_ghz: {ghz}
  memory_bandwidth: {chip.bytes:.0f}
  device_memory_size: {chip.hbm:.0f}
}}
"""


# Autotuning would run candidates on the chip. Without it Triton's matrix products have no default
# configuration; cuBLAS covers all of them.
_GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: Name that the user gave.
      devices: They cannot run programs or hold arrays.
      chip: Limits of each device.
      memory: Memory in bytes that a program may use on each device.
      compiler_options: XLA options in addition to those of every program on the platform.
    """

    name: str
    # JAX assigns the class to a variable, which a type checker does not take for a type.
    devices: Sequence[jax.Device]  # pyright: ignore[reportInvalidTypeForm]
    chip: Chip
    memory: float
    compiler_options: Mapping[str, int] = dataclasses.field(default_factory=dict)


def find(name: str) -> Topology:
    """Returns the devices of a topology `KIND:SHAPE`. Must be called before JAX is used.

    Afterwards this process computes on the CPU and does not cache compiled programs.

    Args:
      name: One of `TPUS` and a shape in chips, or one of `GPUS` and a number of GPUs in one host.

    Raises:
      ValueError: If there is no such topology; the message lists kinds and shapes.
      RuntimeError: If the compiler for the topology is not installed.
    """
    kind, _, shape = name.partition(":")
    check_name("topology", kind, [*TPUS, *GPUS])
    dimensions = 1 if kind in GPUS else TPUS[kind].dimensions
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), shape):
        raise _unknown_shape(name, kind)
    stay_on_cpu()
    return _find_gpu(name, kind, shape) if kind in GPUS else _find_tpu(name, kind)


def _find_tpu(name: str, kind: str) -> Topology:
    try:
        devices = find_tpus(name)
    except ValueError as error:
        raise _unknown_shape(name, kind) from error
    chip = CHIPS[TPUS[kind].chip]
    return Topology(name, devices, chip, chip.hbm)


def _find_gpu(name: str, kind: str, shape: str) -> Topology:
    chip = CHIPS[GPUS[kind]]
    assert chip.clock is not None  # every GPU has one in `CHIPS`
    target = _GPU_TARGET.format(name=GPUS[kind], chip=chip, ghz=chip.clock / 1e9)
    try:
        # Slices x hosts x GPUs per host.
        found = topologies.get_topology_desc(
            kind, "cuda", target_config=target, topology=f"1x1x{shape}"
        )
    except (NotImplementedError, RuntimeError) as error:
        raise RuntimeError(
            f'--topology={name} needs JAX\'s CUDA plugin: pip install -e ".[cuda]" (found: '
            f"{str(error).splitlines()[0]}). No GPU is needed."
        ) from error
    memory = chip.hbm * gpu_memory_fraction()
    return Topology(name, found.devices, chip, memory, _GPU_OPTIONS)


def gpu_memory_fraction() -> float:
    """Returns the share of a GPU's memory that JAX allocates, 0.75 unless the user sets it."""
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    return float(next((os.environ[name] for name in names if os.environ.get(name)), 0.75))


def _unknown_shape(name: str, kind: str) -> ValueError:
    if kind in GPUS:
        return ValueError(f"--topology={name}: expected {kind}:NUMBER, GPUs of one host.")
    expected = f"{kind}:SHAPE, a shape in chips. Valid shapes: {TPUS[kind].shapes}."
    return ValueError(f"--topology={name}: expected {expected}")
