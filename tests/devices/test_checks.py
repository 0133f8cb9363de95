"""What the command `checks` finds, on this machine and on others."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from mtmamba_jax.cli import main
from mtmamba_jax.devices import checks
from mtmamba_jax.kernels.ss2d import pallas_gpu, pallas_triton


def test_checks_names_versions_devices_and_the_scan(capsys):
    code = main.main(["checks", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (1 if found["problems"] else 0)
    assert {"python", "jax", "mtmamba_jax"} <= found["versions"].keys()
    assert found["devices"][0]["platform"] == "cpu"
    assert found["scan"] == {"platform": "cpu", "backend": "xla", "not": {}}


def test_a_problem_is_printed_with_its_remedy_and_ends_with_1(capsys, monkeypatch):
    problem = checks.Problem("JAX uses the CPU.", "Install the other one.")
    monkeypatch.setattr(checks, "unused_accelerators", lambda: [problem])
    assert main.main(["checks"]) == 1
    out = capsys.readouterr().out
    assert "problem: JAX uses the CPU.\n  Install the other one." in out
    assert "No problems found" not in out


@pytest.mark.parametrize(
    ("kind", "driver", "plugins", "platforms", "what", "remedy"),
    [
        ("NVIDIA GPU", "580.65", [], "", "this is JAX for CPUs", '".[cuda]"'),
        ("NVIDIA GPU", "580.65", [], "cuda", "this is JAX for CPUs", '".[cuda]"'),
        ("NVIDIA GPU", "580.65", ["jax-cuda13-plugin"], "cpu", "=cpu hides it", "Unset"),
        ("NVIDIA GPU", "535.1", ["jax-cuda13-plugin"], "", "older than 580", "jax[cuda12]"),
        ("NVIDIA GPU", "470.2", ["jax-cuda12-plugin"], "", "older than 525", "the driver."),
        ("NVIDIA GPU", "580.65", ["jax-cuda13-plugin"], "", "NVIDIA GPU", "jax.devices()"),
        ("TPU", None, [], "", "this is JAX for CPUs", '".[tpu]"'),
        ("TPU", None, ["libtpu"], "", "TPU of this machine", "Another process"),
        ("AMD GPU", None, [], "", "AMD GPU", "ROCm"),
    ],
)
def test_an_accelerator_that_jax_does_not_use_is_a_problem(
    monkeypatch, kind, driver, plugins, platforms, what, remedy
):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    (problem,) = checks.unused_accelerators([kind], driver, plugins)
    assert what in problem.what
    assert remedy in problem.remedy
    assert checks.unused_accelerators([]) == []


def test_a_platform_without_a_device_is_one_problem_and_no_traceback():
    ran = subprocess.run(
        [sys.executable, "launch.py", "checks", "--json"],
        env=os.environ | {"JAX_PLATFORMS": "rocm"},
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1, ran.stderr
    assert "JAX_PLATFORMS=rocm" in json.loads(ran.stdout)["problems"][0]["remedy"]


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
    for module in (pallas_gpu, pallas_triton):
        monkeypatch.setattr(module, "compute_capabilities", lambda: (capability,))
    monkeypatch.setattr(checks, "local_platform", lambda: "cuda")
    found = checks._scan()
    assert found["backend"] == backend
    assert list(found["not"]) == refused
    assert all(str(capability) in reason for reason in found["not"].values())
