"""Set before jax is imported: eight CPU devices, and one compilation cache for the whole run.

`--runslow` runs the tests marked slow too.
"""

import importlib.metadata
import os
import tempfile

import pytest

# On the CPU also where there is a GPU, which the tests for it ask for: see CONTRIBUTING.md.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices, so that sharding is tested wherever the suite runs.
# Optimising the many small programs of the suite would take most of its time.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        # Its older code generator takes two thirds of the time; later versions have no choice.
        "--xla_cpu_use_fusion_emitters=false"
        if importlib.metadata.version("jaxlib").startswith("0.10.")
        else "",
    )
)
# Tests compile the same small model in several processes; each program is compiled once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="mtmamba_jax_tests_"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--runslow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes many minutes; --runslow runs it"))
