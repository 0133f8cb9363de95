"""Where this package keeps what it can make or fetch again."""

from __future__ import annotations

import os
import pathlib


def cache_folder() -> pathlib.Path:
    """Returns `mtmamba_jax` in the user's cache folder.

    Raises:
      RuntimeError: the user has no home.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is to be ignored (XDG Base Directory Specification).
    base = pathlib.Path(given) if os.path.isabs(given) else pathlib.Path.home() / ".cache"
    return base / "mtmamba_jax"
