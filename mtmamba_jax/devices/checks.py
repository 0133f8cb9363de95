"""What is installed, which devices JAX uses, and which backend of the scan each would take."""

import importlib.metadata
import os
import pathlib
import platform
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtmamba_jax.devices.compilation_cache import enable_compilation_cache
from mtmamba_jax.kernels.ss2d.api import choose_implementation
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS
from mtmamba_jax.kernels.ss2d.platform_check import local_platform

PACKAGES = ("mtmamba_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
PLUGINS = {"jax-cuda12-plugin": 525, "jax-cuda13-plugin": 580}
"""JAX's packages for NVIDIA GPUs, and the oldest driver that their CUDA version runs on."""
KINDS = {
    "NVIDIA GPU": ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"),  # dxg: under Windows
    "TPU": ("/dev/accel0", "/dev/vfio/0"),
    "AMD GPU": ("/dev/kfd",),
}
"""Kinds of accelerators, with device files of which one exists where there is such a device."""
INSTALL = {
    "NVIDIA GPU": 'JAX for GPUs: pip install -e ".[cuda]"',
    "TPU": 'JAX for TPUs: pip install -e ".[tpu]"',
}
CLUSTERS = {
    "MEGASCALE_COORDINATOR_ADDRESS": "several Cloud TPU slices",
    "TPU_WORKER_HOSTNAMES": "Cloud TPU",
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
    problems.extend(_outdated_gpus(devices))
    scan = _scan() if devices else None
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
    """Returns the version of the NVIDIA driver on Linux, None if it is unknown."""
    try:
        text = pathlib.Path(file).read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else None


def accelerators() -> list[str]:
    """Returns the kinds of accelerators in this machine, keys of `KINDS`, by their device files."""
    return [kind for kind, files in KINDS.items() if any(pathlib.Path(f).exists() for f in files)]


def _devices(problems: list[Problem]) -> list[dict[str, object]]:
    """Returns the devices that JAX uses, and adds what keeps it from others."""
    os.environ.setdefault(
        "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
    )  # a training may need the memory
    try:
        local = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: no platform is left
        reason = str(error).splitlines()[0] if str(error) else "its platform has no device"
        found = unused_accelerators()
        if not found or os.environ.get("JAX_PLATFORMS"):
            chosen = os.environ.get("JAX_PLATFORMS", "")
            remedy = f"Unset JAX_PLATFORMS={chosen}." if chosen else "Free or repair the device."
            problems.append(Problem(f"JAX starts on no device: {reason}", remedy))
        problems.extend(found)
        return []
    if local[0].platform == "cpu":
        problems.extend(unused_accelerators())
    return [_describe(device) for device in local]


def _describe(device: jax.Device) -> dict[str, object]:  # pyright: ignore[reportInvalidTypeForm]
    stats = (device.memory_stats() or {}) if device.platform != "cpu" else {}
    limit = stats.get("bytes_limit")
    return {
        "kind": device.device_kind,
        "platform": device.platform,
        "compute_capability": getattr(device, "compute_capability", None),
        "memory_gib": None if limit is None else round(limit / 2**30, 1),
    }


def unused_accelerators(
    kinds: Sequence[str] | None = None,
    driver: str | None = None,
    plugins: Sequence[str] | None = None,
) -> list[Problem]:
    """Returns why JAX does not use an accelerator of a machine; by default of this one.

    Args:
      kinds: Accelerators, keys of `KINDS`.
      driver: Version of the NVIDIA driver.
      plugins: Installed packages for accelerators.
    """
    kinds = accelerators() if kinds is None else kinds
    if not kinds:
        return []
    plugins = (
        [name for name in (*PLUGINS, "libtpu") if _installed(name)] if plugins is None else plugins
    )
    what = f"JAX does not use the {kinds[0]} of this machine"
    chosen = os.environ.get("JAX_PLATFORMS", "")
    if chosen.startswith("cpu"):
        return [Problem(f"{what}: JAX_PLATFORMS={chosen} hides it.", "Unset JAX_PLATFORMS.")]
    if kinds[0] == "AMD GPU":
        return [
            Problem(
                f"{what}.", "Install JAX for ROCm: https://docs.jax.dev/en/latest/installation.html"
            )
        ]
    needed = ["libtpu"] if kinds[0] == "TPU" else list(PLUGINS)
    installed = [name for name in needed if name in plugins]
    if not installed:
        return [Problem(f"{what}: this is JAX for CPUs.", f"Install {INSTALL[kinds[0]]}")]
    if kinds[0] == "TPU":
        return [Problem(f"{what}.", "Another process may use it: end that, or see JAX's messages.")]
    driver, oldest = driver or nvidia_driver(), min(PLUGINS[name] for name in installed)
    if driver and int(driver.split(".")[0]) < oldest:
        older = ' or install JAX for CUDA 12: pip install "jax[cuda12]"' if oldest > 525 else ""
        found = f"its driver {driver} is older than {oldest}, which {installed[0]} needs"
        return [Problem(f"{what}: {found}.", f"Update the driver{older}.")]
    reason = "JAX_PLATFORMS=cuda python -c 'import jax; jax.devices()'"
    return [Problem(f"{what}.", f"See the reason: {reason}")]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _scan() -> dict[str, object]:
    """Returns the backend of the scan for the devices of this process."""
    name = local_platform()
    backend, refusals = choose_implementation(name, SPECS["stage1_t1_b1"].shapes(jnp.bfloat16))
    return {"platform": name, "backend": backend, "not": refusals}


def _compilation_cache(problems: list[Problem]) -> str | None:
    """Returns the folder of compiled programs, None if they are not cached."""
    config: Any = jax.config  # whose options type checkers do not see
    if not config.jax_enable_compilation_cache:
        return None
    enable_compilation_cache()
    folder = config.jax_compilation_cache_dir
    if folder is None and jax.default_backend() != "cpu":
        remedy = "Set JAX_COMPILATION_CACHE_DIR to a folder."
        problems.append(Problem("Compiled programs are not cached.", remedy))
    return folder


def _outdated_gpus(devices: Sequence[dict[str, object]]) -> list[Problem]:
    """Returns GPUs that CUDA 13 no longer supports."""
    old = [
        d for d in devices if d["compute_capability"] and float(str(d["compute_capability"])) < 7.5
    ]
    if old and _installed("jax-cuda13-plugin"):
        what = f"CUDA 13 does not support {old[0]['kind']} (compute capability below 7.5)."
        return [Problem(what, 'Install JAX for CUDA 12: pip install "jax[cuda12]"')]
    return []


def _free_memory() -> float | None:
    """Returns the free memory of this host in GiB, None where it is unknown."""
    try:
        text = pathlib.Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return round(int(found[1]) / 2**20, 1) if found else None
