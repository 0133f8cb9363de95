"""Writes JSON, which has neither NaN nor infinity."""

import json
import math
from collections.abc import Mapping

from etils import epath

from mtmamba_jax.files.paths import write_atomically


def write_json(path: epath.PathLike, record: object) -> None:
    """Writes a record as an indented JSON file, completely or not at all; see `to_json`.

    Raises:
      OSError: If the file cannot be written.
    """
    write_atomically(path, (to_json(record, indent=2) + "\n").encode())


def to_json(record: object, *, indent: int | None = None) -> str:
    """Returns a record as JSON, with null for NaN and infinity, which JSON does not have."""
    return json.dumps(_finite(record), indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
