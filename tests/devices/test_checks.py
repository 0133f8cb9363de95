"""What the command `checks` finds, on this machine and on others."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from mtmamba_jax.cli import main
from mtmamba_jax.devices import checks
from tests.kernels.ss2d_suite import pretend_gpus


def test_checks_names_versions_devices_and_the_scan(capsys):
    code = main.main(["checks", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (1 if found["problems"] else 0)
    assert {"python", "jax", "mtmamba_jax"} <= found["versions"].keys()
    assert found["devices"][0]["platform"] == "cpu"
    assert found["scan"] == {"platform": "cpu", "backend": "xla", "refusals": {}}


def test_a_problem_is_printed_with_its_remedy_and_ends_with_1(capsys, monkeypatch):
    problem = checks.Problem("JAX uses the CPU.", "Install the other one.")
    monkeypatch.setattr(checks, "unused_accelerators", lambda: [problem])
    assert main.main(["checks"]) == 1
    out = capsys.readouterr().out
    assert "problem: JAX uses the CPU.\n  Install the other one." in out
    assert "No problems found" not in out


CPU = {"jaxlib": "0.12.0.1"}
CUDA_12 = CPU | {"jax-cuda12-plugin": "0.12.0"}
CUDA_13 = CPU | {"jax-cuda13-plugin": "0.12.0"}


@pytest.mark.parametrize(
    ("kind", "driver", "versions", "variables", "what", "remedy"),
    [
        ("NVIDIA GPU", "580.65", CPU, {}, "this is JAX for CPUs", '".[cuda]"'),
        ("NVIDIA GPU", "535.1", CPU, {}, "this is JAX for CPUs", "jax[cuda12]"),
        ("NVIDIA GPU", "470.2", CPU, {}, "470.2 is older than 525", "Update the driver."),
        ("NVIDIA GPU", "580.65", CPU, {"JAX_PLATFORMS": "cuda"}, "JAX for CPUs", '".[cuda]"'),
        ("NVIDIA GPU", "580.65", CUDA_13, {"JAX_PLATFORMS": "cpu"}, "='cpu' hides it", "Unset"),
        ("NVIDIA GPU", "580.65", CUDA_13, {"JAX_PLATFORMS": "tpu,cpu"}, "hides it", "Unset"),
        ("NVIDIA GPU", "580.65", CUDA_13, {"CUDA_VISIBLE_DEVICES": ""}, "hides it", "_DEVICES."),
        ("NVIDIA GPU", "535.1", CUDA_13, {}, "older than 580", "jax[cuda12]"),
        ("NVIDIA GPU", "470.2", CUDA_12, {}, "older than 525", "the driver."),
        ("NVIDIA GPU", "580.65", CUDA_13, {}, "NVIDIA GPU", "jax.devices()"),
        (
            *("NVIDIA GPU", "580.65", CUDA_13 | {"jaxlib": "0.11.2"}, {}),
            *("jax-cuda13-plugin is 0.12.0, but jaxlib 0.11.2", '".[cuda]"'),
        ),
        ("TPU", None, CPU, {}, "this is JAX for CPUs", '".[tpu]"'),
        ("TPU", None, CPU | {"libtpu": "0.0.42"}, {}, "TPU of this machine", "Another process"),
        ("AMD GPU", None, CPU, {}, "AMD GPU", "ROCm"),
    ],
)
def test_an_accelerator_that_jax_does_not_use_is_a_problem(
    monkeypatch, kind, driver, versions, variables, what, remedy
):
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (problem,) = checks.unused_accelerators([kind], driver, versions)
    assert what in problem.what
    assert remedy in problem.remedy
    assert checks.unused_accelerators([]) == []


@pytest.mark.parametrize(
    ("files", "kinds"),
    [
        (["dev/nvidiactl"], ["NVIDIA GPU"]),
        (["dev/dxg"], []),
        (["dev/dxg", "usr/lib/wsl/lib/libcuda.so.1"], ["NVIDIA GPU"]),
        (["dev/vfio/0"], []),
        (["dev/vfio/0", "sys/bus/pci/devices/00/vendor"], ["TPU"]),
        (["dev/kfd"], ["AMD GPU"]),
    ],
)
def test_accelerators_are_found_by_the_files_of_their_drivers(tmp_path, files, kinds):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("0x1ae0\n")
    assert checks.accelerators(str(tmp_path)) == kinds


def test_free_memory_of_gpus_is_read_from_nvidia_smi(tmp_path):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'NVIDIA A10, 12288, 23028'\n")
    command.chmod(0o755)
    gpu = {"name": "NVIDIA A10", "free_gib": 12.0, "total_gib": 22.5}
    assert checks.nvidia_gpus(str(command)) == [gpu]
    assert checks.nvidia_gpus(str(tmp_path / "none")) == []


def test_a_missing_package_is_a_problem(monkeypatch):
    monkeypatch.setattr(checks, "PACKAGES", ("jax", "no-such-package"))
    (problem,) = checks._missing_packages()
    assert problem.what == "no-such-package not installed."


@pytest.mark.parametrize(
    ("platform", "installed", "remedy"),
    [
        ("cuda", [], 'pip install -e ".[cuda]"'),
        ("gpu", ["jax-cuda12-plugin"], "Unset the environment variable"),
        ("tpu", [], 'pip install -e ".[tpu]"'),
        ("rocm", [], "Unset the environment variable"),
    ],
)
def test_a_platform_that_is_not_installed_has_its_command(monkeypatch, platform, installed, remedy):
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    monkeypatch.setattr(checks, "_version", lambda name: "1.0" if name in installed else None)
    assert remedy in checks._no_device("").remedy


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
def test_a_platform_without_a_device_is_one_problem_and_no_traceback(platform):
    def call(*command):
        return subprocess.run(
            [sys.executable, "launch.py", *command],
            env=os.environ | {"JAX_PLATFORMS": platform},
            cwd=pathlib.Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )

    found = call("checks", "--json")
    (problem,) = json.loads(found.stdout)["problems"]
    assert found.returncode == 1
    assert problem["what"] == f"JAX finds no device for JAX_PLATFORMS='{platform}'."
    found = call("eval", "--workdir=none")
    assert found.returncode == 1
    assert "launch.py" not in found.stderr  # no traceback of ours
    message = found.stderr.splitlines()[-1]  # below what JAX for GPUs logs, where it is installed
    assert message.startswith("error: ")
    assert platform in message


def test_the_driver_is_read_from_the_file_of_its_module(tmp_path):
    file = tmp_path / "version"
    file.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
        "GCC version:  gcc version 12.3.0\n"
    )
    assert checks.nvidia_driver(str(file)) == "550.54.15"
    assert checks.nvidia_driver(str(tmp_path / "none")) is None


@pytest.mark.parametrize(
    ("capability", "backend", "refused"),
    [
        (9.0, "pallas_gpu", []),
        (8.9, "pallas_triton", ["pallas_gpu"]),
        (7.5, "xla", ["pallas_gpu", "pallas_triton"]),
    ],
)
def test_the_scan_of_a_gpu_is_named_with_why_not_others(monkeypatch, capability, backend, refused):
    pretend_gpus(monkeypatch, capability)
    monkeypatch.setattr(checks, "local_platform", lambda: "cuda")
    found = checks._scan()
    assert found["backend"] == backend
    assert list(found["refusals"]) == refused
    assert all(str(capability) in reason for reason in found["refusals"].values())
