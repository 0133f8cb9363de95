"""Finds TPUs and GPUs to compile for that need not be attached."""

import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from mtmamba_jax.kernels.ss2d.common import check_name

_HOST_CHIPS = (2, 2, 1)  # chips of a TPU host; smaller shapes use a part of one


def stay_on_cpu() -> None:
    """Makes this process compute on the CPU and not cache compiled programs.

    Must be called before JAX is used.
    """
    # Little is computed here, and an accelerator of this machine may be busy.
    jax.config.update("jax_platforms", "cpu")
    # JAX can write a program for other devices to the cache but cannot read it without them, so it
    # would be compiled again, with a warning (jax 0.10 to 0.12).
    jax.config.update("jax_compilation_cache_dir", None)


def find_tpus(name: str) -> Sequence[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """Returns devices that can be compiled for but cannot run programs or hold arrays.

    Args:
      name: Kind of TPU and its shape in chips, such as "v5e:2x2".

    Raises:
      ValueError: If libtpu does not know the topology.
      RuntimeError: If libtpu is not installed.
    """
    # Without these variables libtpu queries the network for the TPU it runs on, warns that there is
    # none, and refuses to compile in two processes at once. Any TPU type will do.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5e-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    kind, _, shape = name.partition(":")
    # On Cloud TPU the two cores of a v4 are one device.
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}
    try:
        sizes = (*map(int, shape.split("x")), 1)[:3]
        host = tuple(map(min, sizes, _HOST_CHIPS))
        found = topologies.get_topology_desc(name, "tpu", chips_per_host_bounds=host, **options)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "INVALID_ARGUMENT" not in str(error):
            raise
        raise ValueError(
            f"--topology={name}: libtpu does not know this TPU. Use KIND:SHAPE with a shape in "
            f"chips, such as v5e:2x2 or v5p:2x2x1. ({error})"
        ) from error
    except RuntimeError as error:  # JAX does not find libtpu
        raise RuntimeError(
            f'--topology={name} needs the TPU compiler, libtpu: pip install -e ".[tpu]". '
            "No TPU is needed."
        ) from error
    return found.devices


# Per multiprocessor: threads, and bytes of shared memory, of which a program may use all but 1 KiB.
# From CUDA's C++ Programming Guide (technical specifications per compute capability).
_MULTIPROCESSORS = {
    "8.0": (2048, 164 * 1024),
    "8.6": (1536, 100 * 1024),
    "8.9": (1536, 100 * 1024),
    "9.0": (2048, 228 * 1024),
    "10.0": (2048, 228 * 1024),
    "10.3": (2048, 228 * 1024),
    "12.0": (1536, 100 * 1024),
    "12.1": (1536, 100 * 1024),
}

# The properties that XLA queries from a driver.
_GPU_TARGET = """
platform_name: "CUDA"
device_description_str: "{name}"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: {threads}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {program_shared}
  shared_memory_per_core: {shared}
  fpus_per_core: 128
  l2_cache_size: 52428800
  core_count: {multiprocessors}
  clock_rate_ghz: {ghz}
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory:.0f}
}}
"""


# Autotuning would run candidates on the GPU. Without it Triton's matrix products have no default
# configuration; cuBLAS covers all of them.
GPU_OPTIONS = {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": False}
"""XLA options to compile with for GPUs that are not attached."""


def find_gpus(
    name: str,
    capability: str,
    count: int = 1,
    *,
    multiprocessors: int = 132,
    ghz: float = 1.98,
    bandwidth: float = 4.8e12,
    memory: float = 80e9,
) -> Sequence[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """Returns GPUs of one host that can be compiled for but cannot run programs or hold arrays.

    Args:
      name: Name of the GPU, as its driver gives it.
      capability: Compute capability.
      count: Number of GPUs.
      multiprocessors: Number of multiprocessors of each.
      ghz: Highest clock rate.
      bandwidth: Bytes per second to and from its memory.
      memory: Bytes of memory.

    Raises:
      ValueError: If the compute capability is unknown.
      RuntimeError: If JAX's CUDA plugin is not installed.
    """
    check_name("compute capability", capability, _MULTIPROCESSORS)
    major, minor = capability.split(".")
    threads, shared = _MULTIPROCESSORS[capability]
    target = _GPU_TARGET.format(
        name=name,
        major=major,
        minor=minor,
        threads=threads,
        shared=shared,
        program_shared=shared - 1024,
        multiprocessors=multiprocessors,
        ghz=ghz,
        bandwidth=bandwidth,
        memory=memory,
    )
    try:
        # Slices x hosts x GPUs per host.
        found = topologies.get_topology_desc(
            name, "cuda", target_config=target, topology=f"1x1x{count}"
        )
    except (NotImplementedError, RuntimeError) as error:
        raise RuntimeError(
            f'compiling for {name} needs JAX\'s CUDA plugin: pip install -e ".[cuda]" (found: '
            f"{str(error).splitlines()[0]}). No GPU is needed."
        ) from error
    return found.devices
