"""Copies datasets on remote storage (gs://...) to this host once, to be read from there.

ArrayRecord can read gs:// itself in some of its builds, but one request per record and epoch is far
slower than a local read, and training on NYUDv2 would download 0.6 TB instead of 2 GB.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import urllib.parse
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import tqdm

from mtmamba_jax.data_pipelines.datasets import prepare_command
from mtmamba_jax.files.locks import locked
from mtmamba_jax.files.paths import check_free_space, user_cache_folder
from mtmamba_jax.messages import counted, first_line, shortened

_MARKER = "dataset_info.json"  # TFDS takes a folder with it for complete, so it is copied last
_PARTIAL = ".partial"
_ELSEWHERE = "name a folder of another disk in XDG_CACHE_HOME"
_THREADS = 8  # a bucket serves a single stream at a small part of the network's speed
# Keys by which fsspec's file systems give a hash of a file's contents or, failing that, its version
# or time. Each file system has some of them.
_TOKENS = (
    *("md5Hash", "crc32c", "etag", "ETag", "generation"),
    *("mtime", "LastModified", "last_modified", "created"),
)


def fetch(data_dir: str, name: str, version: str) -> str:
    """Copies a prepared dataset to this host, unless it is there, and returns its local data_dir.

    `data_dir` is the URL of the folder that holds datasets, such as gs://bucket/datasets.
    Copies are kept in `datasets` in `user_cache_folder()`. Each file appears when it is complete,
    an interrupted copy is resumed, and when several processes ask for a dataset, one copies it
    while the others wait. A dataset that has changed is copied beside the old copy, which may be in
    use.

    Raises:
      ValueError: If the dataset is not there, or is incomplete.
      RuntimeError: If no installed package can read such URLs.
      OSError: If the dataset cannot be read, changed meanwhile, or does not fit on the disk.
    """
    data_dir = data_dir.rstrip("/")
    root = f"{data_dir}/{name}/{version}"
    system, path = _open(root, data_dir)
    listed = _list(system, path, root, name, data_dir)
    lines = sorted(f"{file} {size} {token}" for file, (size, token) in listed.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    # The quoted URL is readable and unique.
    place = user_cache_folder() / "datasets" / urllib.parse.quote(data_dir, safe="")
    local = place / digest
    folder = local / name / version
    with locked(place / f".{name}.{version}.lock", f"copies {name}", wait=True):
        found = _local_sizes(folder)
        missing = {key: size for key, (size, _) in listed.items() if found.get(key) != size}
        if not missing:
            return str(local)
        _check_complete(system, path, listed, root)
        folder.mkdir(parents=True, exist_ok=True)
        total = sum(missing.values())
        check_free_space(total, folder, f"Copying {name}", _ELSEWHERE)
        print(f"Copying {name}, {total / 1e6:,.1f} MB, from {root} to {folder}", flush=True)
        old = [str(other) for other in place.glob(f"*/{name}/{version}") if other != folder]
        if old:
            advice = f"The earlier copy can be deleted once nothing reads it: {', '.join(old)}"
            print(f"{name} has changed. {advice}", flush=True)
        marker = missing.pop(_MARKER, None)
        _copy_all(system, path, missing, folder, name)
        if _list(system, path, root, name, data_dir) != listed:
            shutil.rmtree(folder)
            raise OSError(f"{root} changed while it was copied. Run the command again.")
        if marker is not None:
            _copy(system, f"{path}/{_MARKER}", marker, folder / _MARKER)
    return str(local)


def _open(root: str, data_dir: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a remote folder, and the path in it."""
    import fsspec  # with the extra "data" only

    try:
        return fsspec.url_to_fs(root)
    except ImportError as error:
        raise RuntimeError(
            f"{data_dir} needs a package that reads such URLs ({error}). For gs://: pip install "
            '-e ".[data]".'
        ) from error


def _list(
    system: Any, path: str, root: str, name: str, data_dir: str
) -> dict[str, tuple[int, str]]:
    """Returns a dataset's files by name: size in bytes, and a token of the contents, or ""."""
    try:
        system.invalidate_cache()
        entries = system.ls(path, detail=True)
    except FileNotFoundError:
        entries = []
    except Exception as error:  # each file system raises its own types
        raise OSError(
            f"{root} cannot be read ({first_line(error)}). Is the name right, and does this host "
            "have permission? For gs://: gcloud auth application-default login."
        ) from error
    listed = {
        entry["name"].rsplit("/", 1)[-1]: (
            int(entry["size"]),
            next((str(entry[key]) for key in _TOKENS if entry.get(key)), ""),
        )
        for entry in entries
        if entry["type"] == "file" and entry["size"]  # a folder's own entry has no size
    }
    if listed and _MARKER not in listed:
        raise _incomplete(root, [_MARKER])
    if not listed:
        raise ValueError(f"{name} is not prepared in {data_dir}. {how_to_upload(name, data_dir)}")
    return listed


def _check_complete(system: Any, path: str, listed: Container[str], root: str) -> None:
    """Checks that the shards named in a dataset's description are listed."""
    try:
        info = json.loads(system.cat_file(f"{path}/{_MARKER}"))
    except Exception as error:  # as in `_list`
        raise OSError(f"{root}/{_MARKER} cannot be read ({first_line(error)}).") from error
    missing = [shard for shard in _shards(info) if shard not in listed]
    if missing:
        raise _incomplete(root, missing)


def _shards(info: Mapping) -> Iterator[str]:
    """Yields the names of the shards that TFDS's `dataset_info.json` describes."""
    for split in info["splits"]:
        count = len(split["shardLengths"])
        names = {"DATASET": info["name"], "SPLIT": split["name"], "FILEFORMAT": info["fileFormat"]}
        for index in range(count):
            shard = f"{index:05d}-of-{count:05d}"
            yield split["filepathTemplate"].format(SHARD_X_OF_Y=shard, **names)


def _incomplete(root: str, missing: Sequence[str]) -> ValueError:
    return ValueError(
        f"{root} is incomplete: it lacks {counted(len(missing), 'file')}, "
        f"{shortened(missing, 3)}. Is it "
        "still being uploaded? Wait until it is complete, or upload it again."
    )


def how_to_upload(name: str, data_dir: str | os.PathLike) -> str:
    """Returns instructions for putting a prepared dataset on remote storage."""
    return (
        f"Prepare it on a local disk ({prepare_command(name)} --data_dir=DIR) and copy it there: "
        f"gcloud storage cp -r DIR/{name} {os.fspath(data_dir).rstrip('/')}/"
    )


def _local_sizes(folder: pathlib.Path) -> dict[str, int]:
    """Returns the sizes of the complete files in a folder, which need not exist."""
    if not folder.is_dir():
        return {}
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.suffix != _PARTIAL}


def _copy_all(
    system: Any, path: str, sizes: Mapping[str, int], folder: pathlib.Path, name: str
) -> None:
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    bar = tqdm.tqdm(total=sum(sizes.values()), desc=f"Copying {name}", unit="B", unit_scale=True)
    with bar, contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)
        copies = [
            pool.submit(_copy, system, f"{path}/{key}", size, folder / key)
            for key, size in sizes.items()
        ]
        for copy in concurrent.futures.as_completed(copies):
            bar.update(copy.result())


def _copy(system: Any, source: str, size: int, target: pathlib.Path) -> int:
    """Copies a file, completely or not at all, and returns its size."""
    partial = target.with_name(f"{target.name}{_PARTIAL}")
    try:
        system.get_file(source, os.fspath(partial))
    except Exception as error:  # as in `_list`
        partial.unlink(missing_ok=True)
        raise OSError(
            f"{source} could not be copied to {target.parent} ({first_line(error)}). Run the "
            "command again: complete files are kept."
        ) from error
    found = partial.stat().st_size
    if found != size:
        partial.unlink()
        raise OSError(
            f"{source} had {size} bytes, but {found} were received. Did it change meanwhile? Run "
            "the command again: complete files are kept."
        )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, target)
    return size
