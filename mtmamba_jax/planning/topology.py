"""The devices of accelerators that are not here, to compile for: `v5e:4x4`, `h200:8`."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import topologies

from mtmamba_jax.devices.chips import CHIPS, Chip
from mtmamba_jax.messages import check_name


@dataclasses.dataclass(frozen=True)
class Tpu:
    """How libtpu is asked for a kind of TPU.

    Attributes:
      chip: key of `CHIPS`.
      shapes: that Cloud TPU offers, of chips; libtpu knows more.
      options: of libtpu's topology.
    """

    chip: str
    shapes: str
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


_FLAT = "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16"
_CUBES = "2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8 and larger"

TPUS = {
    # As Cloud TPU runs it, jax sees the two cores of a v4 as one device.
    "v4": Tpu("TPU v4", _CUBES, {"chip_config_name": "megacore"}),
    "v5e": Tpu("TPU v5 lite", _FLAT),
    "v5p": Tpu("TPU v5", _CUBES),
    "v6e": Tpu("TPU v6 lite", _FLAT),
    "tpu7x": Tpu("TPU7x", _CUBES),
}
GPUS = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}
"""Key of `CHIPS`."""

HOST_CHIPS = (2, 2, 1)  # of a TPU host, which smaller shapes fill in part

# What XLA asks a driver for: of capability 9.0, in CUDA's C++ Programming Guide (features and
# technical specifications, table of compute capabilities), and of the chip.
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


# Autotuning would run candidates on the chip. Triton's matrix products have no default without it:
# cuBLAS has all of them.
_GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as asked for.
      devices: they cannot run or hold anything.
      chip: limits of each.
      memory: bytes of each that a program may have.
      compiler_options: of XLA, beside those that any program takes there.
    """

    name: str
    devices: Sequence[jax.Device]
    chip: Chip
    memory: float
    compiler_options: Mapping[str, int] = dataclasses.field(default_factory=dict)


def find(name: str) -> Topology:
    """Returns the devices of a topology, `KIND:SHAPE`; to be called before JAX does anything.

    This process then computes on the CPU, and keeps no compiled programs.

    Args:
      name: a kind of `TPUS` with its shape in chips, or one of `GPUS` with a number of them, all
        of one host.

    Raises:
      ValueError: there is no such topology; the message gives kinds and shapes.
      RuntimeError: the compiler for it is not installed.
    """
    kind, _, shape = name.partition(":")
    check_name("topology", kind, [*TPUS, *GPUS])
    _check_shape(name, kind, shape)
    stay_on_cpu()
    if kind in GPUS:
        return _find_gpu(name, kind, shape)
    return _find_tpu(name, kind, shape)


def stay_on_cpu() -> None:
    """Has this process compute on the CPU and keep no compiled programs."""
    # What runs here is little, and an accelerator of this machine may be busy.
    jax.config.update("jax_platforms", "cpu")
    # JAX can write a program for other devices, but not read it again without them: it would be
    # compiled all the same, with a warning (jax 0.10 to 0.12).
    jax.config.update("jax_compilation_cache_dir", None)


def _find_tpu(name: str, kind: str, shape: str) -> Topology:
    tpu = TPUS[kind]
    # Without these libtpu asks the network which TPU it runs on, complains that it is none (any
    # will do), and refuses to compile in two processes at once.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5e-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    sizes = (*map(int, shape.split("x")), 1)[:3]
    host = tuple(map(min, sizes, HOST_CHIPS))
    try:
        found = topologies.get_topology_desc(name, "tpu", chips_per_host_bounds=host, **tpu.options)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise _no_such(name, kind) from error
    except RuntimeError as error:  # jax finds no libtpu
        raise RuntimeError(
            f'--topology={name} needs the TPU compiler, libtpu: pip install -e ".[tpu]". '
            "No TPU is needed."
        ) from error
    chip = CHIPS[tpu.chip]
    return Topology(name, found.devices, chip, chip.hbm)


def _find_gpu(name: str, kind: str, shape: str) -> Topology:
    chip = CHIPS[GPUS[kind]]
    target = _GPU_TARGET.format(name=GPUS[kind], chip=chip, ghz=chip.clock / 1e9)
    try:
        # Slices x hosts x GPUs of a host.
        found = topologies.get_topology_desc(
            kind, "cuda", target_config=target, topology=f"1x1x{shape}"
        )
    except (NotImplementedError, RuntimeError) as error:
        raise RuntimeError(
            f'--topology={name} needs jax\'s CUDA plugin: pip install -e ".[cuda]" (found: '
            f"{str(error).splitlines()[0]}). No GPU is needed."
        ) from error
    memory = chip.hbm * gpu_memory_fraction()
    return Topology(name, found.devices, chip, memory, _GPU_OPTIONS)


def gpu_memory_fraction() -> float:
    """Returns the share of a GPU's memory that jax takes, 0.75 where the user sets none."""
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    return float(next((os.environ[name] for name in names if os.environ.get(name)), 0.75))


def _check_shape(name: str, kind: str, shape: str) -> None:
    dimensions = 1 if kind in GPUS else TPUS[kind].shapes.partition(",")[0].count("x") + 1
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), shape):
        raise _no_such(name, kind)


def _no_such(name: str, kind: str) -> ValueError:
    if kind in GPUS:
        return ValueError(f"--topology={name}: wanted {kind}:NUMBER, GPUs of one host.")
    return ValueError(
        f"--topology={name}: wanted {kind}:SHAPE, a shape in chips that there is: "
        f"{TPUS[kind].shapes}."
    )
