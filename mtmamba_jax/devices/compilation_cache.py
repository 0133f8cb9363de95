"""Cache of compiled programs, so that a command starts at once the next time."""

import logging
import os
from typing import Any

import jax

from mtmamba_jax.files.paths import user_cache_folder


def enable_compilation_cache() -> None:
    """Makes JAX cache programs for accelerators in `user_cache_folder()` from now on.

    Does nothing if JAX already has a cache folder (`JAX_COMPILATION_CACHE_DIR`) or is told not to
    cache (`JAX_ENABLE_COMPILATION_CACHE=false`). Logs a warning if the folder cannot be written.
    """
    config: Any = jax.config  # whose options type checkers do not see
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    # Many CPUs reject their own programs when read from the cache, with a page of errors for each
    # (https://github.com/jax-ml/jax/issues/38445, jax 0.9 and 0.10).
    if jax.default_backend() == "cpu":
        return
    try:
        folder = user_cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write in {folder}")
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        logging.getLogger(__name__).warning(
            "Compiled programs are not cached (%s). Set JAX_COMPILATION_CACHE_DIR to a folder.",
            error,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
