"""What is installed, which devices JAX uses, and which backend of the scan each would take."""

import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtmamba_jax.devices.compilation_cache import enable_compilation_cache
from mtmamba_jax.kernels.ss2d.api import choose_implementation
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS

PACKAGES = ("mtmamba_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
PLUGINS = {"jax-cuda12-plugin": 525, "jax-cuda13-plugin": 580}
"""JAX's packages for NVIDIA GPUs, and the oldest driver that their CUDA version runs on."""
INSTALL = {"gpu": 'pip install -e ".[cuda]"', "tpu": 'pip install -e ".[tpu]"'}
CLUSTERS = {
    "TPU_WORKER_HOSTNAMES": "Cloud TPU",
    "MEGASCALE_COORDINATOR_ADDRESS": "several Cloud TPU slices",
    "SLURM_JOB_ID": "SLURM",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "JAX_COORDINATOR_ADDRESS": "a coordinator given to JAX",
}
"""Launchers of several processes, by a variable that each sets."""


class Problem(NamedTuple):
    """Something that is wrong, and what to do."""

    what: str
    remedy: str


def collect() -> dict[str, object]:
    """Returns what a JSON file can hold: versions, devices, the scan's backend, and problems.

    Keys: "versions", "devices", "scan" (platform, backend, why not others), "compilation_cache",
    "memory_gib" (free memory of the host, or None), "cluster", "problems" (what, remedy).
    """
    problems: list[Problem] = []
    devices = _devices(problems)
    scan = _scan(devices) if devices else None
    return {
        "versions": _versions(),
        "devices": devices,
        "scan": scan,
        "compilation_cache": _compilation_cache(problems) if devices else None,
        "memory_gib": _free_memory(),
        "cluster": next((name for key, name in CLUSTERS.items() if os.environ.get(key)), None),
        "problems": [problem._asdict() for problem in problems],
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in (*PACKAGES, *PLUGINS, "libtpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in PACKAGES:
                found[name] = None
    driver = nvidia_driver()
    return found | ({"NVIDIA driver": driver} if driver else {})


def nvidia_driver(file: str = "/proc/driver/nvidia/version") -> str | None:
    """Returns the version of the NVIDIA driver on Linux, None if there is none."""
    try:
        text = pathlib.Path(file).read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else "unknown"


def _devices(problems: list[Problem]) -> list[dict[str, object]]:
    """Returns the devices that JAX uses, and adds what keeps it from others."""
    try:
        local = jax.local_devices()
    except RuntimeError as error:
        chosen = os.environ.get("JAX_PLATFORMS")
        remedy = "Unset JAX_PLATFORMS." if chosen else "Install JAX for this machine's devices."
        problems.append(Problem(f"JAX finds no device: {str(error).splitlines()[0]}", remedy))
        return []
    if local[0].platform == "cpu":
        problems.extend(unused_accelerators())
    return [_describe(device) for device in local]


def _describe(device: jax.Device) -> dict[str, object]:  # pyright: ignore[reportInvalidTypeForm]
    stats = (device.memory_stats() or {}) if device.platform != "cpu" else {}
    limit, used = stats.get("bytes_limit"), stats.get("bytes_in_use", 0)
    return {
        "kind": device.device_kind,
        "platform": device.platform,
        "compute_capability": getattr(device, "compute_capability", None),
        "free_gib": None if limit is None else round((limit - used) / 2**30, 1),
    }


def unused_accelerators(
    driver: str | None = None, plugins: Sequence[str] | None = None, tpu: bool | None = None
) -> list[Problem]:
    """Returns why JAX uses the CPU on a machine with an accelerator; by default on this machine.

    Args:
      driver: Version of the NVIDIA driver.
      plugins: Installed keys of `PLUGINS`.
      tpu: Whether the machine has a TPU.
    """
    driver = driver or nvidia_driver() or ("unknown" if shutil.which("nvidia-smi") else None)
    tpu = pathlib.Path("/dev/accel0").exists() if tpu is None else tpu
    if not driver and not tpu:
        return []
    what = f"JAX uses the CPU, but this machine has {'an NVIDIA GPU' if driver else 'a TPU'}"
    chosen = os.environ.get("JAX_PLATFORMS", "")
    if chosen.startswith("cpu"):
        return [Problem(f"{what}: JAX_PLATFORMS={chosen} hides it.", "Unset JAX_PLATFORMS.")]
    if not driver:
        return [Problem(f"{what}.", f"Install JAX for TPUs: {INSTALL['tpu']}")]
    plugins = [name for name in PLUGINS if _installed(name)] if plugins is None else plugins
    if not plugins:
        return [Problem(f"{what}: this is JAX for CPUs.", f"Install it for GPUs: {INSTALL['gpu']}")]
    oldest = min(PLUGINS[name] for name in plugins)
    if driver != "unknown" and int(driver.split(".")[0]) < oldest:
        older = ' or install JAX for CUDA 12: pip install "jax[cuda12]"' if oldest > 525 else ""
        found = f"its driver {driver} is older than {oldest}, which {plugins[0]} needs"
        return [Problem(f"{what}: {found}.", f"Update the driver{older}.")]
    return [
        Problem(
            f"{what}.", "See the reason: JAX_PLATFORMS=cuda python -c 'import jax; jax.devices()'"
        )
    ]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _scan(devices: Sequence[dict[str, object]]) -> dict[str, object]:
    """Returns the backend of the scan for the devices of this process."""
    name = str(devices[0]["platform"])
    if name == "gpu":
        version = jax.local_devices()[0].client.platform_version
        name = "rocm" if "rocm" in version.lower() else "cuda"
    backend, refusals = choose_implementation(name, SPECS["stage1_t1_b1"].shapes(jnp.bfloat16))
    return {"platform": name, "backend": backend, "not": refusals}


def _compilation_cache(problems: list[Problem]) -> str | None:
    """Returns the folder of compiled programs, None if they are not cached."""
    enable_compilation_cache()
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None and jax.default_backend() != "cpu":
        problems.append(
            Problem(
                "Compiled programs are not cached.", "Set JAX_COMPILATION_CACHE_DIR to a folder."
            )
        )
    return folder


def _free_memory() -> float | None:
    """Returns the free memory of this host in GiB, None where it is unknown."""
    try:
        text = pathlib.Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return round(int(found[1]) / 2**20, 1) if found else None
