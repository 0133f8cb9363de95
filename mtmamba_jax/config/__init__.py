"""Loads and checks configurations: `load` returns a `Config`, whose sections are passed on."""

from mtmamba_jax.config.loading import load, run_name, split_name, variants
from mtmamba_jax.config.settings import FREE_KEYS, Config, differences, from_flat

__all__ = [
    "FREE_KEYS",
    "Config",
    "differences",
    "from_flat",
    "load",
    "run_name",
    "split_name",
    "variants",
]
