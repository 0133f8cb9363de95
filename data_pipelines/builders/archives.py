"""Extracts published archives, completely or not at all, and refuses unsafe or damaged ones."""

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
from typing import IO, cast

import tqdm

from mtmamba_jax.data_pipelines.read_files import DataError, is_web_page
from mtmamba_jax.files.paths import check_free_space

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")

_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, ValueError),
    RuntimeError,  # an encrypted zip
)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GZIP_SIGNATURE = b"\x1f\x8b"
_DO_NOT_USE = "It is not the published archive; do not use it."


def find(folder: pathlib.Path, patterns: Sequence[str]) -> list[pathlib.Path]:
    """Returns the archives in a folder that match any of the patterns, ignoring case; sorted."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(SUFFIXES)
        and any(fnmatch.fnmatchcase(path.name.lower(), pattern.lower()) for pattern in patterns)
        and path.is_file()
    )


def extract(archive: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Extracts an archive into a subfolder of `folder`, unless this was done before.

    Returns the subfolder. It appears only when everything is extracted, so a killed extraction
    leaves no incomplete one.

    Raises:
      DataError: If it is not an archive, is damaged, or has a member outside its folder.
      OSError: If it cannot be read or written, for instance because the disk is full.
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
        size = _unpacked_size(archive)
        check_free_space(size, folder, f"Extracting {archive}", "give another --data_dir")
        _extract_all(archive, partial)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, NotImplementedError):
            raise DataError(
                f"{archive} uses a compression that cannot be unpacked here ({error}). Extract it "
                "with another program and give the folder."
            ) from error
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise OSError(
                error.errno,
                f"Extracting {archive} below {folder} failed ({error.strerror}). Free some disk "
                "space, or give another --data_dir; then run the same command again.",
            ) from error
        if isinstance(error, _DAMAGED) and not isinstance(error, DataError):
            raise DataError(
                f"{archive} is damaged or cut off after {status.st_size} bytes ({error}). "
                "Download it again."
            ) from error
        raise
    os.replace(partial, target)
    return target


def _check_kind(archive: pathlib.Path) -> None:
    if not archive.name.lower().endswith(SUFFIXES):
        raise DataError(
            f"{archive} is not an archive ({', '.join(SUFFIXES)}). Give an archive, or a folder "
            "that holds the archives or their contents."
        )
    with archive.open("rb") as file:
        start = file.read(64)
    if is_web_page(start):
        raise DataError(
            f"{archive} is a web page, not an archive: the server answered the download with a "
            "login or consent page. Download it in a browser."
        )


def _unpacked_size(archive: pathlib.Path) -> int:
    """Returns the size of the contents in bytes, estimated for a .tar."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            return sum(member.file_size for member in opened.infolist())
    return archive.stat().st_size  # images are compressed already, so it hardly grows


def _extract_all(archive: pathlib.Path, folder: pathlib.Path) -> None:
    size, name = archive.stat().st_size, archive.name
    with (
        archive.open("rb") as file,
        tqdm.tqdm.wrapattr(file, "read", total=size, desc=f"Extracting {name}") as wrapped,
    ):
        read = cast(IO[bytes], wrapped)
        if name.lower().endswith(".zip"):
            with zipfile.ZipFile(read) as opened:
                for member in opened.infolist():
                    _check_name(member.filename, archive)
                    opened.extract(member, folder)  # verifies the member's checksum
            return
        compressed = file.peek(2)[:2] == _GZIP_SIGNATURE
        with (
            gzip.open(read) if compressed else contextlib.nullcontext(read) as stream,
            tarfile.open(fileobj=stream, mode="r|") as opened,
        ):
            # Python 3.11.0 to 3.11.3 has no filters; name and kind are checked below.
            opened.extraction_filter = getattr(tarfile, "data_filter", None)
            for member in opened:
                _check_name(member.name, archive)
                if not (member.isfile() or member.isdir()):
                    raise DataError(
                        f"{archive} holds {member.name!r}, neither file nor folder. {_DO_NOT_USE}"
                    )
                opened.extract(member, folder)
            if compressed:  # to the end of the stream, where gzip verifies its checksum
                while stream.read(2**20):
                    pass
            else:
                _check_end(archive, opened.offset)


def _check_end(archive: pathlib.Path, offset: int) -> None:
    """Checks that a .tar really ends at `offset`: tarfile also stops at a cut or a bad header."""
    end = bytes(2 * tarfile.BLOCKSIZE)
    with archive.open("rb") as file:
        file.seek(offset)
        if file.read(len(end)) != end:
            raise tarfile.ReadError("its end is missing")


def _check_name(name: str, archive: pathlib.Path) -> None:
    parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or (parts and ":" in parts[0]):
        raise DataError(f"{archive} holds {name!r}, which leads out of its folder. {_DO_NOT_USE}")
