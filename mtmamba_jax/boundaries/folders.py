"""Counts of a folder of predictions, image by image, in several processes."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mtmamba_jax.boundaries.counts import count_matches
from mtmamba_jax.boundaries.maps import contour_of_regions, suppress
from mtmamba_jax.data_pipelines.builders.files import DataError, read_grey, read_list, read_mat
from mtmamba_jax.data_pipelines.parallel import in_order
from mtmamba_jax.names import check_name

READINGS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "regions": contour_of_regions,
    "contours": lambda labels: labels != 0,
}
"""How a label [h w] says where the true contour is: between pixels of different numbers, or where
it is not 0. Published figures take regions: of PASCAL-Context's LabelMap, which has them, and of
NYUDv2's edge files too, whose lines so become regions with a contour on either side."""

SUFFIXES = (".png", ".mat")
"""Of labels; a MATLAB file holds a LabelMap, as PASCAL-Context's do."""


def find_ids(
    predictions: pathlib.Path, only: pathlib.Path | None, but: pathlib.Path | None
) -> tuple[str, ...]:
    """Returns the names of images to score.

    Args:
      predictions: folder of NAME.png.
      only: file of names, one a line; None takes all predictions, sorted.
      but: file of names to leave out of those.

    Raises:
      ValueError: there is none; a file that is no list of names (`DataError`).
    """
    ids = read_list(only) if only else tuple(sorted(p.stem for p in predictions.glob("*.png")))
    left_out = frozenset(read_list(but)) if but else frozenset()
    kept = tuple(name for name in ids if name not in left_out)
    if not kept:
        source = only or f"{predictions}/*.png"
        raise ValueError(
            f"There is no image to score: {source} gives {len(ids)} names"
            f"{f', of which {but} leaves none' if ids else ''}. Predictions are files NAME.png, "
            "grey levels 0..255 of the probability of a contour."
        )
    return kept


def count_folder(
    ids: Sequence[str],
    predictions: pathlib.Path,
    labels: pathlib.Path,
    *,
    reading: str,
    max_distance: float,
    num_workers: int = 0,
) -> Iterator[np.ndarray]:
    """Yields `count_matches` of each image, in order; few images are in memory at once.

    Args:
      ids: names of images.
      predictions: folder of NAME.png.
      labels: folder of NAME.png or NAME.mat.
      reading: one of `READINGS`.
      max_distance: as a share of the diagonal.
      num_workers: processes; 0 counts in this one. Counts do not depend on it.

    Raises:
      ValueError: an unknown reading, or fewer than 0 workers; files that are missing or wrong
        (`DataError`).
      RuntimeError: the extra "data" is not installed, or a worker was killed.
    """
    check_name("reading", reading, READINGS)
    if num_workers < 0:
        raise ValueError(f"--workers: wanted 0 or more, got {num_workers}.")
    work = [(name, predictions, labels, reading, max_distance) for name in ids]
    return in_order(count_image, work, num_workers)


def count_image(
    name: str,
    predictions: pathlib.Path,
    labels: pathlib.Path,
    reading: str,
    max_distance: float,
) -> np.ndarray:
    """Returns `count_matches` of one image's files; arguments and errors are `count_folder`'s."""
    label = _read_label(labels, name)
    levels = read_grey(predictions / f"{name}.png", label.shape)
    if levels.dtype != np.uint8:
        raise DataError(
            f"{predictions / name}.png is of {8 * levels.itemsize} bits, wanted 8: grey levels "
            "0..255 of the probability of a contour."
        )
    return count_matches(suppress(levels), READINGS[reading](label), max_distance)


def _read_label(folder: pathlib.Path, name: str) -> np.ndarray:
    """Returns whole numbers [h w]."""
    for suffix in SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.exists():
            return read_grey(path) if suffix == ".png" else read_mat(path, "LabelMap")
    raise DataError(
        f"{folder} has no label of {name} ({' or '.join(f'{name}{s}' for s in SUFFIXES)}). "
        "Score fewer images (--ids, --leave_out), or add it."
    )
