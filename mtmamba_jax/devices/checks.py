"""What is installed, which devices JAX uses, and which backend of the scan it takes on them."""

import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtmamba_jax.devices.compilation_cache import enable_compilation_cache
from mtmamba_jax.devices.processes import find_launcher
from mtmamba_jax.kernels.platform_check import local_platform
from mtmamba_jax.kernels.ss2d.api import choose_implementation
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS

PACKAGES = ("mtmamba_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
PLUGINS = {"jax-cuda12-plugin": 525, "jax-cuda13-plugin": 580}
"""JAX's packages for NVIDIA GPUs, and the oldest driver that their CUDA version runs on."""
GPU, TPU, AMD = "NVIDIA GPU", "TPU", "AMD GPU"
PLATFORMS = {GPU: ("cuda", "gpu"), TPU: ("tpu",), AMD: ("rocm", "gpu")}
"""Kinds of accelerators, with JAX's names of their platforms (`JAX_PLATFORMS`)."""
CUDA_12 = 'pip install -e . "jax[cuda12]"'
CUDA_13 = 'pip install -e ".[cuda]"'
CLOUD_TPU = 'pip install -e ".[tpu]"'
ROCM = "https://docs.jax.dev/en/latest/installation.html"
GIB = 2**30


class Problem(NamedTuple):
    """Something that is wrong, and what to do."""

    what: str
    remedy: str


def collect() -> dict[str, Any]:
    """Returns what is installed and will be used, as values that JSON can hold.

    Keys:
      versions: Of Python, packages and the NVIDIA driver; None if a package is not installed.
      devices: Kind, platform, compute capability and `memory_limit_gib` of each device of JAX; the
        limit is what JAX may allocate.
      nvidia_gpus: Name, `free_gib` and `total_gib` of each GPU that the driver knows.
      scan: Platform, backend, and why backends before it were refused; None without a device.
      compilation_cache: Folder of compiled programs, or None.
      free_host_memory_gib: None where it is unknown.
      launcher: What started several processes, or None.
      problems: What is wrong, each with a remedy.
    """
    problems = _missing_packages()
    devices = _devices(problems)
    problems.extend(_outdated_gpus(devices))
    return {
        "versions": _versions(),
        "devices": devices,
        "nvidia_gpus": nvidia_gpus(),
        "scan": _scan() if devices else None,
        "compilation_cache": _compilation_cache(problems) if devices else None,
        "free_host_memory_gib": _free_memory(),
        "launcher": find_launcher(),
        "problems": [problem._asdict() for problem in problems],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str | None]:
    found = {name: _version(name) for name in (*PACKAGES, *PLUGINS, "libtpu")}
    found = {name: version for name, version in found.items() if version or name in PACKAGES}
    driver = nvidia_driver()
    return {"python": platform.python_version(), **found} | (
        {"NVIDIA driver": driver} if driver else {}
    )


def _missing_packages() -> list[Problem]:
    missing = [name for name in PACKAGES if _version(name) is None]
    what = f"{', '.join(missing)} not installed."
    return [Problem(what, "Install the package: pip install -e .")] if missing else []


def nvidia_driver(file: str = "/proc/driver/nvidia/version") -> str | None:
    """Returns the version of the NVIDIA driver on Linux, None if it is unknown."""
    try:
        text = pathlib.Path(file).read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else None


def nvidia_gpus(command: str = "nvidia-smi") -> list[dict[str, str | float]]:
    """Returns name, free and total memory of the GPUs that the driver lists, also hidden ones."""
    query = "--query-gpu=name,memory.free,memory.total"
    try:
        ran = subprocess.run(
            [command, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = re.findall(r"^(.+), (\d+), (\d+)$", ran.stdout, re.MULTILINE)
    return [
        {"name": name, "free_gib": _gib(int(free) * 2**20), "total_gib": _gib(int(total) * 2**20)}
        for name, free, total in rows
    ]


def _gib(size: float) -> float:
    return round(size / GIB, 1)


def accelerators(root: str = "/") -> list[str]:
    """Returns the kinds of accelerators in this machine, by the files of their drivers."""

    def exists(*files: str) -> bool:
        return all(pathlib.Path(root, file).exists() for file in files)

    # Under Windows any GPU has dxg. Other devices than TPUs can be passed through by VFIO.
    nvidia = exists("dev/nvidiactl") or exists("dev/dxg", "usr/lib/wsl/lib/libcuda.so.1")
    vendors = pathlib.Path(root).glob("sys/bus/pci/devices/*/vendor")
    google = any(vendor.read_text().strip() == "0x1ae0" for vendor in vendors)
    tpu = google and (exists("dev/accel0") or exists("dev/vfio/0"))
    found = {GPU: nvidia, TPU: tpu, AMD: exists("dev/kfd")}
    return [kind for kind, there in found.items() if there]


def _devices(problems: list[Problem]) -> list[dict[str, object]]:
    """Returns the devices of JAX, and appends a problem if it cannot use an accelerator."""
    # A training that runs may need the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        local = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: no platform is left
        problems.extend(unused_accelerators() or [_no_device(str(error))])
        return []
    if local[0].platform == "cpu":
        problems.extend(unused_accelerators())
    return [_describe(device) for device in local]


def _no_device(error: str) -> Problem:
    """Returns the problem of a machine on which JAX starts on no device, not even the CPU."""
    chosen = os.environ.get("JAX_PLATFORMS")
    if not chosen:
        return Problem(f"JAX finds no device: {error.splitlines()[0]}", "Free or repair it.")
    unset = "unset the environment variable JAX_PLATFORMS"
    platforms = set(chosen.split(","))
    if platforms & set(PLATFORMS[GPU]) and not any(_version(name) for name in PLUGINS):
        remedy = f"Install JAX for GPUs: {CUDA_13} (for AMD: {ROCM}), or {unset}."
    elif "tpu" in platforms and not _version("libtpu"):
        remedy = f"Install JAX for TPUs: {CLOUD_TPU}, or {unset}."
    else:
        remedy = f"U{unset[1:]}."
    return Problem(f"JAX finds no device for JAX_PLATFORMS={chosen!r}.", remedy)


def _describe(device: jax.Device) -> dict[str, object]:  # pyright: ignore[reportInvalidTypeForm]
    stats = (device.memory_stats() or {}) if device.platform != "cpu" else {}
    limit = stats.get("bytes_limit")
    return {
        "kind": device.device_kind,
        "platform": device.platform,
        "compute_capability": getattr(device, "compute_capability", None),
        "memory_limit_gib": None if limit is None else _gib(limit),
    }


def unused_accelerators(
    kinds: Sequence[str] | None = None,
    driver: str | None = None,
    versions: dict[str, str | None] | None = None,
) -> list[Problem]:
    """Returns why JAX does not use an accelerator of a machine; by default of this one.

    Args:
      kinds: Accelerators, keys of `PLATFORMS`.
      driver: Version of the NVIDIA driver.
      versions: Installed versions of jaxlib and of the packages for accelerators, by name.
    """
    kinds = accelerators() if kinds is None else kinds
    if not kinds:
        return []
    kind, what = kinds[0], f"JAX does not use the {kinds[0]} of this machine"
    hidden = _hidden_by(kind)
    if hidden:
        remedy = f"Unset the environment variable {hidden}."
        return [Problem(f"{what}: {hidden}={os.environ[hidden]!r} hides it.", remedy)]
    if versions is None:
        versions = {name: _version(name) for name in ("jaxlib", *PLUGINS, "libtpu")}
    if kind == GPU:
        return [_unused_nvidia_gpu(what, driver or nvidia_driver(), versions)]
    if kind == AMD:
        return [Problem(f"{what}.", f"If ROCm supports it, install JAX for ROCm: {ROCM}")]
    if not versions.get("libtpu"):
        remedy = f"Install JAX for TPUs: {CLOUD_TPU}"
        return [Problem(f"{what}: this is JAX for CPUs.", remedy)]
    return [Problem(f"{what}.", "Another process may use it: end that, or see JAX's messages.")]


def _hidden_by(kind: str) -> str | None:
    """Returns the environment variable that hides an accelerator from JAX, None if none does."""
    chosen = os.environ.get("JAX_PLATFORMS")
    if chosen and not set(chosen.split(",")) & set(PLATFORMS[kind]):
        return "JAX_PLATFORMS"
    name = "CUDA_VISIBLE_DEVICES"
    return name if kind == GPU and os.environ.get(name) in ("", "-1") else None


def _unused_nvidia_gpu(what: str, driver: str | None, versions: dict[str, str | None]) -> Problem:
    major = int(driver.split(".")[0]) if driver else max(PLUGINS.values())
    oldest = min(PLUGINS.values())
    install = CUDA_13 if major >= PLUGINS["jax-cuda13-plugin"] else CUDA_12
    installed = {name: version for name in PLUGINS if (version := versions.get(name))}
    if major < oldest:
        return Problem(f"{what}: its driver {driver} is older than {oldest}.", "Update the driver.")
    if not installed:
        return Problem(f"{what}: this is JAX for CPUs.", f"Install JAX for GPUs: {install}")
    name, version = next(iter(installed.items()))
    if major < PLUGINS[name]:
        found = f"its driver {driver} is older than {PLUGINS[name]}, which {name} needs"
        remedy = f"Update the driver, or install JAX for CUDA 12: {CUDA_12}"
        return Problem(f"{what}: {found}.", remedy)
    jaxlib = versions.get("jaxlib")
    if jaxlib and jaxlib.split(".")[:3] != version.split(".")[:3]:
        return Problem(f"{what}: {name} is {version}, but jaxlib {jaxlib}.", f"Run {install}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    limited = f"Check CUDA_VISIBLE_DEVICES; it is {visible!r}. " if visible else ""
    reason = "JAX_PLATFORMS=cuda python -c 'import jax; jax.devices()'"
    return Problem(f"{what}.", f"{limited}See the reason: {reason}")


def _scan() -> dict[str, object]:
    """Returns the backend of the scan: one for all devices of this process."""
    name = local_platform()
    backend, refusals = choose_implementation(name, SPECS["stage1_t1_b1"].shapes(jnp.bfloat16))
    return {"platform": name, "backend": backend, "refusals": refusals}


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
    if old and _version("jax-cuda13-plugin"):
        what = f"CUDA 13 does not support {old[0]['kind']} (compute capability below 7.5)."
        return [Problem(what, f"Install JAX for CUDA 12: {CUDA_12}")]
    return []


def _free_memory() -> float | None:
    """Returns the free memory of this host in GiB, None where it is unknown."""
    try:
        text = pathlib.Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return _gib(int(found[1]) * 1024) if found else None
