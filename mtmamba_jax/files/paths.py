"""Helpers for local folders and Google Cloud buckets: atomic writes, free space, caches."""

import contextlib
import errno
import itertools
import os
import pathlib
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Container, Iterator
from typing import Any

import platformdirs
from etils import epath
from etils.epath.backend import fsspec_backend

DESKTOP_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""Files that desktops add to folders; they are nobody's own."""

_MOST_AGAIN = 10_000
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LEFT_BEHIND = 24 * 3600.0  # seconds, after which no process still writes
_VISIBILITY_TIMEOUT = 90.0  # seconds; NFS clients cache attributes for up to a minute


def is_remote(path: str | os.PathLike | None) -> bool:
    """Returns True if a path is a URL that fsspec reads, such as gs://bucket/data."""
    return path is not None and "://" in os.fspath(path)


def user_cache_folder() -> pathlib.Path:
    """Returns this package's folder in the user's cache folder; it may not exist yet.

    On Linux that is `$XDG_CACHE_HOME/mtmamba_jax`, by default `~/.cache/mtmamba_jax`.

    Raises:
      RuntimeError: If the user has no home folder and no cache folder is set.
    """
    folder = platformdirs.user_cache_path("mtmamba_jax")
    if not folder.is_absolute():  # "~/...": older releases of platformdirs return it as it is
        raise RuntimeError(f"{folder}: there is no home folder. Set XDG_CACHE_HOME to a folder.")
    return folder


def clear_listing_cache(path: str | os.PathLike) -> None:
    """Drops fsspec's cached listings of a bucket, which other processes and TensorStore change."""
    if is_remote(path):
        fsspec_backend.fs(path).invalidate_cache()


def wait_until(condition: Callable[[], bool]) -> bool:
    """Polls a condition on a shared file system; returns whether it held within 90 seconds.

    Changes that another host made on NFS take up to a minute to become visible.
    """
    deadline = time.monotonic() + _VISIBILITY_TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


def file_sizes(folder: epath.PathLike) -> dict[str, int]:
    """Returns {relative path: size in bytes} of all files below a folder."""
    if is_remote(folder):
        found: Any = fsspec_backend.fs(folder).find(os.fspath(folder), detail=True)
        root = len(os.fspath(folder).partition("://")[2]) + 1
        return {name[root:]: info["size"] for name, info in found.items()}
    files = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def walk_files(
    folder: str | os.PathLike,
    *,
    hidden: bool = False,
    on_error: Callable[[OSError], None] | None = None,
) -> list[pathlib.PurePosixPath]:
    """Returns the visible files below a folder, and hidden ones if asked for, relative and sorted.

    `on_error` is called for each folder that cannot be listed; None leaves it out.

    Links to folders are followed, except to a folder that the walk to the link passed through or
    that contains one of those, so every walk ends.

    Raises:
      ValueError: If links lead to each other in so many ways that a link would be followed again
        for more than 10,000 times in all.
    """
    found: list[pathlib.Path] = []
    followed: set[pathlib.Path] = set()
    again = 0
    # Where to walk, its real path, and the real folders that the walk to it went through.
    starts: list[tuple[str, pathlib.Path, tuple[pathlib.Path, ...]]] = [
        (os.fspath(folder), pathlib.Path(os.path.realpath(folder)), ())
    ]
    for start, real_start, through in starts:  # grows
        for place, folders, files in os.walk(start, onerror=on_error):
            folders[:] = sorted(name for name in folders if hidden or name[0] != ".")
            passed = (*through, real_start / os.path.relpath(place, start))
            for name in folders:
                link = passed[-1] / name
                if not link.is_symlink():
                    continue
                target = pathlib.Path(os.path.realpath(link))
                if any(each.is_relative_to(target) for each in passed):
                    continue
                again += link in followed
                if again > _MOST_AGAIN:
                    raise ValueError(
                        f"{os.fspath(folder)} holds links to folders, such as {link}, that lead to "
                        "each other in too many ways to follow them all. Remove some of them."
                    )
                followed.add(link)
                starts.append((os.path.join(place, name), target, passed))
            inside = pathlib.Path(place).relative_to(folder)
            found += [inside / name for name in files if hidden or name[0] != "."]
    return sorted(pathlib.PurePosixPath(path.as_posix()) for path in found)


def path_inside(name: str) -> str:
    """Returns a name as a relative path that does not leave its folder and is not hidden.

    A "/" separates folders. A part that is empty or begins with "." gets a "_" in front. So does
    one that is such a part behind "_" already, so different names stay different.
    """
    return "/".join(re.sub(r"^(?=_*(\.|\Z))", "_", part) for part in name.split("/"))


def unique_name(name: str, taken: Container[str]) -> str:
    """Returns a name, with a numeric suffix if it is taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)


def write_atomically(path: epath.PathLike, contents: bytes) -> None:
    """Writes a file completely or not at all, even if the process is killed or the disk is full.

    Local files are written under a temporary name and then renamed; buckets are atomic anyway.

    Raises:
      OSError: If the file cannot be written.
    """
    path = epath.Path(path)
    if is_remote(path):
        path.write_bytes(contents)
        return
    # The checksum: with another suffix, the longest file names would be too long.
    partial = pathlib.Path(path.parent) / f".{zlib.crc32(os.fsencode(path.name)):08x}.partial"
    try:
        partial.write_bytes(contents)
        partial.replace(path)
    except OSError as error:
        raise explain(error, f"{path} could not be written", "write to another folder") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def replacing(path: pathlib.Path, needed: int, what: str, remedy: str) -> Iterator[pathlib.Path]:
    """Yields a path for a new file or folder, which replaces that at `path` when the block ends.

    If the block fails, what was at `path` stays. What killed processes left beside it is removed.

    Args:
      path: A local path; its folder is made.
      needed: Bytes that the new file or folder takes.
      what: Subject of messages, such as "The artifact".
      remedy: Advice to give if it cannot be written, such as "write it elsewhere".

    Raises:
      OSError: If the disk does not have the space, or the block raises an OSError.
    """
    message = f"{what} could not be written to {path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, message, remedy) from error
    _remove_left_behind(path.parent)
    check_free_space(needed, path.parent, what, remedy)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial.") as temporary:
            new = pathlib.Path(temporary) / "new"
            yield new
            if path.is_dir():  # a folder that is not empty is not replaced by renaming
                path.rename(pathlib.Path(temporary) / "old")
            new.replace(path)
    except OSError as error:
        raise explain(error, message, remedy) from error


def _remove_left_behind(folder: pathlib.Path) -> None:
    """Removes new files and folders of `replacing` that a process was killed over, a day later."""
    for partial in folder.glob(".partial.*"):
        with contextlib.suppress(OSError):
            # Not with an "old" one: it may be all that is left.
            is_new = [each.name for each in partial.iterdir()] in ([], ["new"])
            if is_new and time.time() - partial.stat().st_mtime > _LEFT_BEHIND:
                shutil.rmtree(partial)


def cause(error: OSError) -> OSError:
    """Returns the system's error of which `explain` made one, such as for one file of a folder."""
    return error.__cause__ if isinstance(error.__cause__, OSError) else error


def explain(error: OSError, what: str, remedy: str) -> OSError:
    """Returns an error of the same type and number that says what happened and what to do."""
    error = cause(error)
    fix = "Free some disk space" if error.errno in _DISK_FULL else "Fix that"
    kind = type(OSError(error.errno, ""))  # subclasses of libraries may take other arguments
    explained = kind(f"{what} ({error.strerror or error}). {fix}, or {remedy}.")
    explained.errno = error.errno
    return explained


def check_writable(folder: pathlib.Path, what: str, remedy: str) -> None:
    """Checks that files can be written to a local folder; makes nothing if it does not exist yet.

    Args:
      folder: The folder.
      what: Begin of the message, such as "FOLDER cannot be written to".
      remedy: Advice to give, such as "write elsewhere".

    Raises:
      OSError: If a file or folder cannot be made there.
    """
    place = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise explain(error, what, remedy) from error


def check_writable_scheme(path: str | os.PathLike, flag: str) -> None:
    """Checks that a path is a local folder or a gs:// URL, which runs can be written to.

    Raises:
      ValueError: If the path has another URL scheme. The message names the `flag` that gave it.
    """
    scheme, found, _ = os.fspath(path).partition("://")
    if found and scheme != "gs":
        raise ValueError(
            f"{flag}={os.fspath(path)}: runs are not written to {scheme}://. Give a folder, or a "
            "place in a Google Cloud bucket, gs://BUCKET/NAME."
        )


def check_free_space(needed: int, folder: pathlib.Path, what: str, remedy: str) -> None:
    """Checks that the disk of a folder has `needed` bytes of free space for `what`.

    Raises:
      OSError: If it does not. The message also gives the `remedy`.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{what} needs about {needed / 1e6:,.0f} MB below {folder}, where {free / 1e6:,.0f} MB "
            f"are free. Free some, or {remedy}."
        )
