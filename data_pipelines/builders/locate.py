"""Locates a dataset's published files in folders and archives and opens its splits."""

import os
import pathlib
from collections.abc import Iterator

import tqdm

from mtmamba_jax.data_pipelines.builders import archives
from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.read_files import DataError
from mtmamba_jax.messages import counted


def open_splits(
    kind: type[DatasetFiles],
    name: str,
    source: pathlib.Path,
    staging: pathlib.Path,
    *,
    allow_partial: bool,
) -> list[DatasetFiles]:
    """Opens every split of a published dataset and checks the number of examples.

    Args:
      kind: Class of the dataset's files.
      name: Name of the dataset, for messages.
      source: An archive, or a folder with the archives or their contents.
      staging: Folder in which archives are extracted.
      allow_partial: Whether to accept a subset, or a single split, with a warning.

    Raises:
      DataError: If something is missing; the message names it.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist. Give the folder or archive of {name}.")
    packed = [source] if source.is_file() else archives.find(source, kind.ARCHIVES)
    extracted = [archives.extract(archive, staging / "extracted") for archive in packed]
    roots = extracted if source.is_file() else [source, *extracted]
    try:
        folders = locate_folders(roots, kind.FOLDERS, kind.SUBFOLDERS)
    except DataError as error:
        raise DataError(
            f"{source} is not {name} as published: it has {error}. Give a folder that holds "
            f"{', '.join(kind.FOLDERS)}, or whose subfolders hold them; or the archive, or a "
            f"folder with all archives, named like {' '.join(kind.ARCHIVES)} "
            f"({', '.join(archives.SUFFIXES)})."
        ) from None
    splits, problems = [], []
    for split, published in kind.COUNTS.items():
        path = kind.split_path(folders, split)
        files = kind(folders, split) if path.exists() else ()
        if len(files) != published:
            found = f"has {counted(len(files), 'example')}" if files else "is missing"
            problems.append(f"{path} {found}, the published {split} split has {published}.")
        if files:
            splits.append(files)
    if problems and not allow_partial:
        raise DataError(
            f"{' '.join(problems)} Extract the archive again, or pass --allow_partial to use what "
            "is there."
        )
    for problem in problems:
        tqdm.tqdm.write(f"warning: {problem}")
    if not splits:
        raise DataError(f"{source} holds no example of {name}.")
    return splits


def locate_folders(
    roots: list[pathlib.Path], names: tuple[str, ...], subfolders: tuple[str, ...]
) -> dict[str, pathlib.Path]:
    """Returns the path of each of a dataset's folders.

    Args:
      roots: Folders to search, up to two levels deep.
      names: Names of the dataset's folders. A parent that holds all of them is preferred.
      subfolders: Subfolders of which each folder should have at least one. Folders without them,
        such as those of the dataset's other archives, are used only if there is no better one.

    Raises:
      DataError: If folders are missing; the message names them.
    """
    candidates = [folder for root in roots for folder in _subfolders(root, depth=2)]
    found = {}
    for suits in (
        lambda path: any((path / name).is_dir() for name in subfolders),
        pathlib.Path.is_dir,
    ):
        for folder in candidates:
            if not found and all(suits(folder / name) for name in names):
                return {name: folder / name for name in names}
        for name in names:
            for folder in candidates:
                if suits(folder / name):
                    found.setdefault(name, folder / name)
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"no folder {', '.join(missing)}")
    return found


def _subfolders(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
    """Yields a folder and its subfolders down to `depth` levels below it, breadth first."""
    level = [folder]
    for _ in range(depth + 1):
        below = []
        for parent in level:
            try:
                with os.scandir(parent) as entries:
                    names = sorted(entry.name for entry in entries if entry.is_dir())
            except PermissionError:
                if parent == folder:
                    raise
                continue  # an unrelated private folder beside the dataset
            yield parent
            below += [parent / name for name in names if not name.startswith(".")]
        level = below
