"""Datasets that lie on remote storage (gs://...): fetched to this host once, then read from there.

ArrayRecord can read gs:// itself in some of its builds, but a request for each record of each epoch
is slower than a local read by far, and training on NYUDv2 would fetch 0.6 TB in place of 2 GB.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import urllib.parse
from collections.abc import Mapping

import tqdm

from mtmamba_jax.data_pipelines.builders.files import check_space
from mtmamba_jax.data_pipelines.locks import locked
from mtmamba_jax.user_cache import cache_folder

_MARKER = "dataset_info.json"  # TFDS takes a folder with it for prepared, so it comes last
_PARTIAL = ".partial"
_ELSEWHERE = "name a folder of another disk in XDG_CACHE_HOME"
_THREADS = 8  # a bucket gives one stream a small part of what the network can do


def is_remote(data_dir: str | os.PathLike | None) -> bool:
    """Says whether a place is one that a file system of fsspec reads, such as gs://bucket/data."""
    return data_dir is not None and "://" in os.fspath(data_dir)


def fetch(data_dir: str, name: str, version: str) -> str:
    """Copies a prepared dataset to this host, unless it is there, and returns its data_dir here.

    It is kept in `datasets` of `user_cache.cache_folder()`. Each file appears when it is whole; a
    fetch that was stopped goes on where it was, and of several processes one copies while the
    others wait. A dataset that has changed (a file has another size) is fetched anew.

    Args:
      data_dir: that holds datasets, such as gs://bucket/datasets.
      name: of the dataset.
      version: of its format.

    Raises:
      ValueError: it is not there.
      RuntimeError: no package for such places is installed.
      OSError: it cannot be read, changed meanwhile, or the disk has no room for it.
    """
    data_dir = data_dir.rstrip("/")
    root = f"{data_dir}/{name}/{version}"
    system, path, sizes = _list(root, name, data_dir)
    # One name for a folder, that tells the place and cannot clash with another one's.
    local = cache_folder() / "datasets" / urllib.parse.quote(data_dir, safe="")
    folder = local / name / version
    with locked(folder.with_name(f".{version}.lock"), f"copies {name}", wait=True):
        found = _present(folder)
        if found == sizes:
            return str(local)
        if any(found[key] != sizes.get(key) for key in found):
            print(f"{name} in {data_dir} has changed: fetching it anew.", flush=True)
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        missing = {key: size for key, size in sizes.items() if not (folder / key).exists()}
        total = sum(missing.values())
        check_space(
            total, folder, f"Copying {name}", "name a folder of another disk in XDG_CACHE_HOME"
        )
        print(f"Copying {name}, {total / 1e6:,.1f} MB, from {root} to {folder}", flush=True)
        _copy_all(system, path, missing, folder, name)
    return str(local)


def _list(root: str, name: str, data_dir: str):
    """Returns (file system, path in it, sizes of the dataset's files by name) of a folder."""
    import fsspec  # with the extra "data" only

    try:
        system, path = fsspec.url_to_fs(root)
    except ImportError as error:
        raise RuntimeError(
            f"{data_dir} needs a package that reads such places ({error}). For gs://: pip install "
            '-e ".[data]".'
        ) from error
    try:
        system.invalidate_cache()
        listed = system.ls(path, detail=True)
    except FileNotFoundError:
        listed = []
    except Exception as error:  # each file system has its own kinds
        raise OSError(
            f"{root} cannot be read ({type(error).__name__}: {error}). Is the name right, and does "
            "this host have permission? For gs://: gcloud auth application-default login."
        ) from error
    sizes = {
        entry["name"].rsplit("/", 1)[-1]: int(entry["size"])
        for entry in listed
        if entry["type"] == "file" and entry["size"]  # a folder's own entry has no size
    }
    if _MARKER not in sizes:
        raise ValueError(f"{name} is not prepared in {data_dir}. {how_to_upload(name, data_dir)}")
    return system, path, sizes


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
    """Copies files, `_MARKER` last."""
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    bar = tqdm.tqdm(total=sum(sizes.values()), desc=f"Copying {name}", unit="B", unit_scale=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        stack.callback(pool.shutdown, cancel_futures=True)
        copies = [
            pool.submit(_copy, system, f"{path}/{key}", size, folder / key)
            for key, size in sizes.items()
            if key != _MARKER
        ]
        for copy in concurrent.futures.as_completed(copies):
            bar.update(copy.result())
        if _MARKER in sizes:
            bar.update(_copy(system, f"{path}/{_MARKER}", sizes[_MARKER], folder / _MARKER))


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
