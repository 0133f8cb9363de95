"""Datasets that lie on remote storage (gs://...): fetched to this host once, then read from there.

ArrayRecord can read gs:// itself in some of its builds, but a request for each record of each epoch
is slower than a local read by far, and training on NYUDv2 would fetch 0.6 TB in place of 2 GB.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence

import tqdm

from mtmamba_jax.files.locks import locked
from mtmamba_jax.files.paths import check_free_space, user_cache_folder

_MARKER = "dataset_info.json"  # TFDS takes a folder with it for prepared, so it comes last
_PARTIAL = ".partial"
_ELSEWHERE = "name a folder of another disk in XDG_CACHE_HOME"
_THREADS = 8  # a bucket gives one stream a small part of what the network can do
_SHOWN = 3  # files in a message
# What tells a file's contents or, failing that, its version or its time: file systems of fsspec
# call it by different names, and each has some of them.
_TOKENS = (
    *("md5Hash", "crc32c", "etag", "ETag", "generation"),
    *("mtime", "LastModified", "last_modified", "created"),
)


@dataclasses.dataclass(frozen=True)
class _Listed:
    """A file of a remote folder: bytes, and what changes when its contents do, or ""."""

    size: int
    token: str


def fetch(data_dir: str, name: str, version: str) -> str:
    """Copies a prepared dataset to this host, unless it is there, and returns its data_dir here.

    It is kept in `datasets` of `user_cache_folder()`. Each file appears when it is whole; a
    fetch that was stopped goes on where it was, and of several processes one copies while the
    others wait. A dataset that has changed is fetched beside the old copy, which may be in use.

    Args:
      data_dir: that holds datasets, such as gs://bucket/datasets.
      name: of the dataset.
      version: of its format.

    Raises:
      ValueError: it is not there, or not all of it.
      RuntimeError: no package for such places is installed.
      OSError: it cannot be read, changed meanwhile, or the disk has no room for it.
    """
    data_dir = data_dir.rstrip("/")
    root = f"{data_dir}/{name}/{version}"
    system, path = _open(root, data_dir)
    listed = _list(system, path, root, name, data_dir)
    # One name for a place, that tells it and cannot clash with another one's.
    place = user_cache_folder() / "datasets" / urllib.parse.quote(data_dir, safe="")
    local = place / _digest(listed)
    folder = local / name / version
    with locked(place / f".{name}.{version}.lock", f"copies {name}", wait=True):
        found = _present(folder)
        missing = {k: file.size for k, file in listed.items() if found.get(k) != file.size}
        if not missing:
            return str(local)
        _check_whole(system, path, listed, root)
        folder.mkdir(parents=True, exist_ok=True)
        total = sum(missing.values())
        check_free_space(total, folder, f"Copying {name}", _ELSEWHERE)
        print(f"Copying {name}, {total / 1e6:,.1f} MB, from {root} to {folder}", flush=True)
        old = [str(other) for other in place.glob(f"*/{name}/{version}") if other != folder]
        if old:
            print(
                f"{name} has changed. What was copied before can be deleted once nothing reads it: "
                f"{', '.join(old)}",
                flush=True,
            )
        marker = missing.pop(_MARKER, None)
        _copy_all(system, path, missing, folder, name)
        if _list(system, path, root, name, data_dir) != listed:
            shutil.rmtree(folder)
            raise OSError(f"{root} changed while it was copied. Run the command again.")
        if marker is not None:
            _copy(system, f"{path}/{_MARKER}", marker, folder / _MARKER)
    return str(local)


def _digest(listed: Mapping[str, _Listed]) -> str:
    """Returns a hash of a listing."""
    lines = sorted(f"{name} {file.size} {file.token}" for name, file in listed.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _open(root: str, data_dir: str):
    """Returns (file system, path in it) of a remote folder."""
    import fsspec  # with the extra "data" only

    try:
        return fsspec.url_to_fs(root)
    except ImportError as error:
        raise RuntimeError(
            f"{data_dir} needs a package that reads such places ({error}). For gs://: pip install "
            '-e ".[data]".'
        ) from error


def _list(system, path: str, root: str, name: str, data_dir: str) -> dict[str, _Listed]:
    """Returns a dataset's files, by name."""
    try:
        system.invalidate_cache()
        entries = system.ls(path, detail=True)
    except FileNotFoundError:
        entries = []
    except Exception as error:  # each file system has its own kinds
        raise OSError(
            f"{root} cannot be read ({type(error).__name__}: {error}). Is the name right, and does "
            "this host have permission? For gs://: gcloud auth application-default login."
        ) from error
    listed = {
        entry["name"].rsplit("/", 1)[-1]: _Listed(
            int(entry["size"]), next((str(entry[key]) for key in _TOKENS if entry.get(key)), "")
        )
        for entry in entries
        if entry["type"] == "file" and entry["size"]  # a folder's own entry has no size
    }
    if listed and _MARKER not in listed:
        raise _unfinished(root, [_MARKER])
    if not listed:
        raise ValueError(f"{name} is not prepared in {data_dir}. {how_to_upload(name, data_dir)}")
    return listed


def _check_whole(system, path: str, listed: Mapping[str, _Listed], root: str) -> None:
    """Checks that the shards that a dataset's description promises are listed."""
    try:
        info = json.loads(system.cat_file(f"{path}/{_MARKER}"))
    except Exception as error:  # as in `_list`
        raise OSError(
            f"{root}/{_MARKER} cannot be read ({type(error).__name__}: {error})."
        ) from error
    missing = [shard for shard in _shards(info) if shard not in listed]
    if missing:
        raise _unfinished(root, missing)


def _shards(info: Mapping) -> Iterator[str]:
    """Yields the names of the files that a `dataset_info.json` of TFDS promises."""
    for split in info["splits"]:
        count = len(split["shardLengths"])
        for index in range(count):
            yield split["filepathTemplate"].format(
                DATASET=info["name"],
                SPLIT=split["name"],
                FILEFORMAT=info["fileFormat"],
                SHARD_X_OF_Y=f"{index:05d}-of-{count:05d}",
            )


def _unfinished(root: str, missing: Sequence[str]) -> ValueError:
    names = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    return ValueError(
        f"{root} is not whole: it lacks {len(missing)} files, {names}. Is it still being uploaded? "
        "Wait until it is there, or upload it again."
    )


def how_to_upload(name: str, data_dir: str | os.PathLike) -> str:
    """Returns what to do to have a dataset on remote storage."""
    return (
        f"Prepare it on a local disk (python launch.py prepare --dataset={name} "
        f"--source=PUBLISHED_FILES --data_dir=DIR) and copy it there: "
        f"gcloud storage cp -r DIR/{name} {os.fspath(data_dir).rstrip('/')}/"
    )


def _present(folder: pathlib.Path) -> dict[str, int]:
    """Returns the sizes of the whole files in a folder, which need not exist."""
    if not folder.is_dir():
        return {}
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.suffix != _PARTIAL}


def _copy_all(system, path: str, sizes: Mapping[str, int], folder: pathlib.Path, name: str) -> None:
    """Copies files, several at once."""
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    bar = tqdm.tqdm(total=sum(sizes.values()), desc=f"Copying {name}", unit="B", unit_scale=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        stack.callback(pool.shutdown, cancel_futures=True)
        copies = [
            pool.submit(_copy, system, f"{path}/{key}", size, folder / key)
            for key, size in sizes.items()
        ]
        for copy in concurrent.futures.as_completed(copies):
            bar.update(copy.result())


def _copy(system, source: str, size: int, target: pathlib.Path) -> int:
    """Copies a file, whole or not at all, and returns its size."""
    partial = target.with_name(f"{target.name}{_PARTIAL}")
    try:
        system.get_file(source, os.fspath(partial))
    except Exception as error:  # as in `_list`
        partial.unlink(missing_ok=True)
        raise OSError(
            f"{source} could not be copied to {target.parent} ({type(error).__name__}: {error}). "
            "Run the command again: what is copied is kept."
        ) from error
    found = partial.stat().st_size
    if found != size:
        partial.unlink()
        raise OSError(
            f"{source} had {size} bytes and {found} came. Did it change meanwhile? Run the command "
            "again: what is copied is kept."
        )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, target)
    return size
