"""Extracting published archives: whole or not at all, and nothing outside their folder."""

from __future__ import annotations

import os
import pathlib
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Sequence

import tqdm

from mtmamba_jax.data_pipelines.builders.files import DataError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")


def find(folder: pathlib.Path, patterns: Sequence[str]) -> list[pathlib.Path]:
    """Returns a folder's archives whose names match one of the patterns, sorted."""
    return sorted(
        {
            path
            for pattern in patterns
            for path in folder.glob(pattern)
            if path.name.endswith(SUFFIXES) and path.is_file()
        }
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
        with _open(archive) as opened:
            members = list(_checked(opened, archive))
            needed = sum(size for _, size in members)
            free = shutil.disk_usage(folder).free
            if needed > free:
                raise OSError(
                    f"Extracting {archive} needs {needed / 1e9:.1f} GB below {folder}, where "
                    f"{free / 1e9:.1f} GB are free. Free some, or give another --data_dir."
                )
            for member, _ in tqdm.tqdm(members, desc=f"Extracting {archive.name}", unit="file"):
                _extract_member(opened, member, partial)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{archive} is damaged or cut off after {status.st_size} bytes ({error}). "
            "Download it again."
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    os.replace(partial, target)
    return target


def _open(archive: pathlib.Path) -> tarfile.TarFile | zipfile.ZipFile:
    with archive.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(
            f"{archive} is a web page, not an archive: the download was answered with a page to "
            "log in or to agree. Download it in a browser."
        )
    if archive.name.endswith(".zip"):
        return zipfile.ZipFile(archive)
    return tarfile.open(archive)


def _checked(opened, archive: pathlib.Path) -> Iterable[tuple[object, int]]:
    """Yields the archive's files and folders with their sizes.

    Raises:
      DataError: one is neither, or would land elsewhere.
    """
    is_zip = isinstance(opened, zipfile.ZipFile)
    for member in opened.infolist() if is_zip else opened:
        name = member.filename if is_zip else member.name
        parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts
        if name.startswith(("/", "\\")) or ".." in parts or (parts and ":" in parts[0]):
            raise DataError(
                f"{archive} holds {name!r}, which leads out of its folder. It is not "
                "the published archive; do not use it."
            )
        if not is_zip and not (member.isfile() or member.isdir()):
            raise DataError(
                f"{archive} holds {name!r}, neither file nor folder. It is not the "
                "published archive; do not use it."
            )
        yield member, member.file_size if is_zip else member.size


def _extract_member(opened, member, folder: pathlib.Path) -> None:
    if isinstance(opened, zipfile.ZipFile):
        opened.extract(member, folder)  # checks the file's checksum
    elif hasattr(tarfile, "data_filter"):
        opened.extract(member, folder, filter="data")
    else:  # Python 3.11.0 to 3.11.3; names and kinds are checked above
        opened.extract(member, folder)
