"""Places to read and write: folders and buckets, and the room on disks; what is written there."""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping

from etils import epath
from etils.epath.backend import fsspec_backend

_PATIENCE = 90.0  # seconds


def is_remote(data_dir: str | os.PathLike | None) -> bool:
    """Says whether a place is one that a file system of fsspec reads, such as gs://bucket/data."""
    return data_dir is not None and "://" in os.fspath(data_dir)


def forget_listings(place: str | os.PathLike) -> None:
    """Has a bucket listed anew: other processes, and TensorStore, change what is there."""
    if is_remote(place):
        fsspec_backend.fs(place).invalidate_cache()


def wait_to_see(is_seen: Callable[[], bool]) -> bool:
    """Waits until this host sees what another one did to a file system that they share.

    Returns:
      Whether it does; NFS takes up to a minute, and more is not waited for.
    """
    deadline = time.monotonic() + _PATIENCE
    while not is_seen():
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


def write_whole(path: epath.PathLike, contents: bytes) -> None:
    """Writes a file whole or not at all, should the process be killed or the disk be full.

    It has another name until then; buckets have whole files only.

    Raises:
      OSError: it cannot be written.
    """
    path = epath.Path(path)
    if is_remote(path):
        path.write_bytes(contents)
        return
    partial = pathlib.Path(path.parent) / f".{path.name}.partial"
    try:
        partial.write_bytes(contents)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def as_json(record: object, *, indent: int | None = None) -> str:
    """Returns a record as JSON, null for every number that is not finite: JSON has none.

    Args:
      record: numbers, texts, None, and mappings and sequences of them.
      indent: spaces a level; None is one line.
    """
    return json.dumps(_finite(record), indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_written(place: str | os.PathLike, key: str) -> None:
    """Checks that a place is one that runs write to: a folder, or gs://.

    Args:
      place: what the user gave.
      key: that it was given by, for the message.

    Raises:
      ValueError: it is of another kind.
    """
    scheme, found, _ = os.fspath(place).partition("://")
    if found and scheme != "gs":
        raise ValueError(
            f"{key}={os.fspath(place)}: runs are not written to {scheme}://. Give a folder, or a "
            "place in a Google Cloud bucket, gs://BUCKET/NAME."
        )


def check_space(
    needed: int, folder: pathlib.Path, what: str, instead: str = "give another --data_dir"
) -> None:
    """Checks that a disk has room.

    Args:
      needed: bytes.
      folder: on the disk.
      what: needs them, for the message.
      instead: what to do where none can be freed.

    Raises:
      OSError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{what} needs about {needed / 1e6:,.0f} MB below {folder}, where {free / 1e6:,.0f} MB "
            f"are free. Free some, or {instead}."
        )
