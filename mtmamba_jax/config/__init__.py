"""Configurations: `load` one by name or path, pass on the sections of the `Config` it returns."""

from mtmamba_jax.config.loading import load, run_name, variants
from mtmamba_jax.config.settings import FREE_KEYS, Config, differences, from_flat

__all__ = ["FREE_KEYS", "Config", "differences", "from_flat", "load", "run_name", "variants"]
