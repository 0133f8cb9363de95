"""Set before jax is imported: eight CPU devices, and one compilation cache for the whole run."""

import os
import tempfile

# Eight devices, so that sharding is tested wherever the suite runs.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Tests compile the same small model in several processes; each program is compiled once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="mtmamba_jax_tests_"))
