"""Extracting published archives: whole or not at all, and nothing outside their folder."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import gzip
import os
import pathlib
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Sequence

import tqdm

from mtmamba_jax.data_pipelines.builders.reading import DataError
from mtmamba_jax.files.paths import check_free_space

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")


def find(folder: pathlib.Path, patterns: Sequence[str]) -> list[pathlib.Path]:
    """Returns a folder's archives whose names match one of the patterns, in any case; sorted."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(SUFFIXES)
        and any(fnmatch.fnmatchcase(path.name.lower(), pattern.lower()) for pattern in patterns)
        and path.is_file()
    )


def extract(archive: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Extracts an archive into a folder of its own below `folder`, unless it is there already.

    Returns:
      That folder. It appears when all is extracted: a killed extraction leaves no half of one.

    Raises:
      DataError: no archive, a damaged one, or one with a name that leads out of its folder.
      OSError: the disk is full, for instance.
    """
    status = archive.stat()
    target = folder / f"{archive.name}-{status.st_size}-{status.st_mtime_ns}"
    if target.is_dir():
        return target
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _check_kind(archive)
        check_free_space(_unpacked_size(archive), folder, f"Extracting {archive}")
        _extract_all(archive, partial)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, NotImplementedError):
            raise DataError(
                f"{archive} is packed in a way that cannot be unpacked here ({error}). Extract it "
                "with another program and give the folder."
            ) from error
        if isinstance(error, OSError) and error.errno in _FULL:
            raise OSError(
                error.errno,
                f"Extracting {archive} below {folder} failed ({error.strerror}). Free some of the "
                "disk, or give another --data_dir; then run the same command again.",
            ) from error
        if isinstance(error, _DAMAGED) and not isinstance(error, DataError):
            raise DataError(
                f"{archive} is damaged or cut off after {status.st_size} bytes ({error}). "
                "Download it again."
            ) from error
        raise
    os.replace(partial, target)
    return target


_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    ValueError,
    RuntimeError,  # an encrypted zip
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GZIP, _BLOCK = b"\x1f\x8b", 2**20


def _check_kind(archive: pathlib.Path) -> None:
    if not archive.name.lower().endswith(SUFFIXES):
        raise DataError(
            f"{archive} is no archive ({', '.join(SUFFIXES)}). Give one, or a folder that holds "
            "them or what is in them."
        )
    with archive.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(
            f"{archive} is a web page, not an archive: the download was answered with a page to "
            "log in or to agree. Download it in a browser."
        )


def _unpacked_size(archive: pathlib.Path) -> int:
    """Returns how many bytes it will take, or about as many."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            return sum(member.file_size for member in opened.infolist())
    return archive.stat().st_size  # what is in it is compressed already, so it hardly grows


def _extract_all(archive: pathlib.Path, folder: pathlib.Path) -> None:
    with (
        archive.open("rb") as file,
        tqdm.tqdm.wrapattr(
            file, "read", total=archive.stat().st_size, desc=f"Extracting {archive.name}"
        ) as read,
    ):
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(read) as opened:
                for member in opened.infolist():
                    _check_name(member.filename, archive)
                    opened.extract(member, folder)  # checks the file's checksum
            return
        packed = read.peek(2)[:2] == _GZIP
        with (
            gzip.open(read) if packed else contextlib.nullcontext(read) as stream,
            tarfile.open(fileobj=stream, mode="r|") as opened,
        ):
            for member in opened:
                _check_name(member.name, archive)
                if not (member.isfile() or member.isdir()):
                    raise DataError(
                        f"{archive} holds {member.name!r}, neither file nor folder. {_STRANGE}"
                    )
                # Python 3.11.0 to 3.11.3 have no filter; name and kind are checked above.
                safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                opened.extract(member, folder, **safe)
            if packed:  # to its end, where the checksum is
                while stream.read(_BLOCK):
                    pass
            else:
                _check_end(archive, opened.offset)


def _check_end(archive: pathlib.Path, offset: int) -> None:
    """Checks that what tarfile took for the end of a .tar, be it a cut or a bad header, is it."""
    end = bytes(2 * tarfile.BLOCKSIZE)
    with archive.open("rb") as file:
        file.seek(offset)
        if file.read(len(end)) != end:
            raise tarfile.ReadError("its end is missing")


_STRANGE = "It is not the published archive; do not use it."


def _check_name(name: str, archive: pathlib.Path) -> None:
    parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or (parts and ":" in parts[0]):
        raise DataError(f"{archive} holds {name!r}, which leads out of its folder. {_STRANGE}")
