"""Opening published files: from archives or a folder to a layout for each split."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import tqdm

from mtmamba_jax.data_pipelines.builders import archives
from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.builders.reading import DataError


def open_splits(
    kind: type[DatasetFiles],
    name: str,
    source: pathlib.Path,
    staging: pathlib.Path,
    *,
    allow_partial: bool,
) -> list[DatasetFiles]:
    """Opens every split of a dataset's published files, and checks their numbers.

    Args:
      kind: the layout.
      name: of the dataset, for messages.
      source: an archive, or a folder with archives or with what was in them.
      staging: where archives are extracted.
      allow_partial: fewer examples, or one split alone, are a warning.

    Raises:
      DataError: something is missing; names it.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist. Give the folder or archive of {name}.")
    roots = [source]
    if source.is_file():
        roots = [archives.extract(source, staging / "extracted")]
    else:
        roots += [
            archives.extract(archive, staging / "extracted")
            for archive in archives.find(source, kind.ARCHIVES)
        ]
    try:
        folders = locate_folders(roots, kind.FOLDERS, kind.SUBFOLDERS)
    except DataError as error:
        raise DataError(
            f"{source} is not {name} as published: it has {error}. Give a folder that holds "
            f"{', '.join(kind.FOLDERS)}, or whose subfolders hold them; or the archive, or a "
            f"folder with all archives, named like {' '.join(kind.ARCHIVES)} "
            f"({', '.join(archives.SUFFIXES)})."
        ) from None
    layouts, wrong = [], []
    for split, wanted in kind.COUNTS.items():
        path = kind.split_file(folders, split)
        layout = kind(folders, split) if path.exists() else ()
        if len(layout) != wanted:
            found = f"has {len(layout)} examples" if layout else "is missing"
            wrong.append(f"{path} {found}, the published {split} split has {wanted}.")
        if layout:
            layouts.append(layout)
    if wrong and not allow_partial:
        raise DataError(
            f"{' '.join(wrong)} Extract the archive again, or take what is there with "
            "--allow_partial."
        )
    for message in wrong:
        tqdm.tqdm.write(f"warning: {message}")
    if not layouts:
        raise DataError(f"{source} holds no example of {name}.")
    return layouts


def locate_folders(
    roots: list[pathlib.Path], parts: tuple[str, ...], inside: tuple[str, ...] = ()
) -> dict[str, pathlib.Path]:
    """Returns where a dataset's folders are.

    Args:
      roots: folders to look in, and in theirs.
      parts: names of the folders; one that holds them all is preferred.
      inside: folders of which a part should hold one or more; others of its name, which archives
        that are not wanted may hold, come after it.

    Raises:
      DataError: not all are there; which.
    """
    candidates = [folder for root in roots for folder in _subfolders(root, depth=2)]
    found = {}
    for suits in (lambda path: any((path / name).is_dir() for name in inside), pathlib.Path.is_dir):
        for folder in candidates:
            if not found and all(suits(folder / part) for part in parts):
                return {part: folder / part for part in parts}
        for part in parts:
            for folder in candidates:
                if suits(folder / part):
                    found.setdefault(part, folder / part)
    missing = [part for part in parts if part not in found]
    if missing:
        raise DataError(f"no folder {', '.join(missing)}")
    return found


def _subfolders(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
    """Yields a folder and those in it, the shallowest first, down to `depth` below it."""
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
                continue  # somebody else's, beside the dataset
            yield parent
            below += [parent / name for name in names if not name.startswith(".")]
        level = below
