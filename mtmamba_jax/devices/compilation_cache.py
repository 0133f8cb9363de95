"""Where the commands keep compiled programs, so that the next one starts at once."""

from __future__ import annotations

import logging
import os

import jax

from mtmamba_jax.files.paths import user_cache_folder


def keep_programs() -> None:
    """Makes JAX cache programs for accelerators in `user_cache_folder()` from now on.

    Nothing changes where JAX has been given a folder (`JAX_COMPILATION_CACHE_DIR`) or told to keep
    none (`JAX_ENABLE_COMPILATION_CACHE=false`). A folder that cannot be written is logged.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    # Many CPUs refuse their own programs when they are read again, with a page of errors for each
    # (https://github.com/jax-ml/jax/issues/38445, jax 0.9 and 0.10).
    if jax.default_backend() == "cpu":
        return
    try:
        folder = user_cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write in {folder}")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        logging.getLogger(__name__).warning(
            "Compiled programs are not kept (%s); JAX_COMPILATION_CACHE_DIR names a folder.", error
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
