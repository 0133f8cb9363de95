"""Counts of a folder of predictions, image by image, in several processes."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy import ndimage

from mtmamba_jax.data_pipelines.builders.reading import DataError, read_grey, read_list, read_mat
from mtmamba_jax.data_pipelines.parallel import in_order
from mtmamba_jax.messages import check_name
from mtmamba_jax.metrics.boundaries.contours import contour_of_regions, suppress
from mtmamba_jax.metrics.boundaries.counts import count_matches

READINGS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "regions": contour_of_regions,
    "contours": lambda labels: labels != 0,
}
"""How a label [h w] says where the true contour is: between pixels of different numbers, or where
it is not 0. Published figures take regions: of PASCAL-Context's LabelMap, which has them, and of
NYUDv2's edge files too, whose lines so become regions with a contour on either side."""

SUFFIXES = (".png", ".mat")
"""Of labels; a MATLAB file holds a LabelMap, as PASCAL-Context's do."""


EXCLUDED: Mapping[str, pathlib.Path] = {
    "pascal_context": pathlib.Path(__file__).with_name("pascal_context_excluded.txt")
}
"""Lists of the test images that a dataset's published figures leave out.

Of PASCAL-Context's 5,105 they leave out 2,607, on which COB was validated (Maninis et al.,
"Convolutional oriented boundaries", ECCV 2016), and score the other 2,498. The list is COB's:
github.com/kmaninis/COB at e33f10e, src/external/gt_wrappers/gt_sets/PASCALContext/voc_val.txt
(Copyright (c) 2016 ETH Zurich, BSD 2-clause). With the 4,998 training images it makes the 7,605 of
`trainval_new.txt` there."""


def find_ids(
    dataset: str, predictions: pathlib.Path, listed: pathlib.Path | None, every: bool = False
) -> tuple[str, ...]:
    """Returns the names of images to score.

    Args:
      dataset: whose published figures leave images out (`EXCLUDED`).
      predictions: folder of NAME.png; NAME may hold subfolders.
      listed: file of names, one a line, all of which are scored; None takes all predictions but
        those left out, sorted.
      every: leave none out.

    Raises:
      ValueError: there is none; a list and all; a file that is no list of names (`DataError`).
    """
    if listed and every:
        raise ValueError(
            f"--ids={listed} scores the images listed, --all every prediction: give one of the two."
        )
    if listed:
        return read_list(listed)
    found = sorted(
        path.relative_to(predictions).with_suffix("").as_posix()
        for path in predictions.rglob("*.png")
    )
    left_out = frozenset() if every else excluded_ids(dataset)
    ids = tuple(name for name in found if name not in left_out)
    if not ids:
        but = ", all of which the published figures leave out (--all scores them)" if found else ""
        raise ValueError(
            f"There is no image to score: {predictions} holds {len(found)} files NAME.png{but}. "
            "Predictions are grey levels 0..255 of the probability of a contour."
        )
    return ids


def excluded_ids(dataset: str) -> frozenset[str]:
    """Returns the names of images that a dataset's published figures leave out; mostly none."""
    return frozenset(read_list(EXCLUDED[dataset]) if dataset in EXCLUDED else ())


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
    label = read_label(labels, name)
    levels = read_grey(predictions / f"{name}.png", label.shape)
    if levels.dtype != np.uint8:
        raise DataError(
            f"{predictions / name}.png is of {8 * levels.itemsize} bits, wanted 8: grey levels "
            "0..255 of the probability of a contour."
        )
    return count_prediction(levels, label, reading, max_distance)


def count_against_file(
    name: str, levels: np.ndarray, labels: pathlib.Path, reading: str, max_distance: float
) -> np.ndarray:
    """Returns `count_matches` of a prediction, uint8 [h w], and an image's label in a folder.

    Raises:
      ValueError: the label is missing, wrong or of another size (`DataError`).
    """
    label = read_label(labels, name)
    if label.shape != levels.shape:
        sizes = ("x".join(map(str, array.shape)) for array in (label, levels))
        raise DataError(
            "The label of {} in {} is {} (height x width), the prediction {}. Both must be of one "
            "size: is it of another version of the dataset?".format(name, labels, *sizes)
        )
    return count_prediction(levels, label, reading, max_distance)


def count_prediction(
    levels: np.ndarray,
    label: np.ndarray,
    reading: str,
    max_distance: float,
    ignore: int | None = None,
) -> np.ndarray:
    """Returns `count_matches` of a prediction and a label.

    Args:
      levels: prediction, uint8 [h w].
      label: whole numbers [h w].
      reading: one of `READINGS`.
      max_distance: as a share of the diagonal.
      ignore: number of pixels that are not labelled: no contour is there or beside them, and what
        is predicted there is not counted. None: all are labelled.

    Raises:
      ValueError: maps of two sizes, or of other types.
    """
    strength = suppress(levels)
    if ignore is None:
        return count_matches(strength, READINGS[reading](label), max_distance)
    left_out = label == ignore
    # Where labelling ends is no contour either.
    beside = ndimage.binary_dilation(left_out, np.ones((3, 3), bool))
    contour = READINGS[reading](np.where(left_out, 0, label)) & ~beside
    return count_matches(np.where(left_out, 0.0, strength), contour, max_distance)


def read_label(folder: pathlib.Path, name: str) -> np.ndarray:
    """Returns an image's label in a folder of NAME.png or NAME.mat, whole numbers [h w].

    Raises:
      DataError: there is none, or it cannot be read.
    """
    for suffix in SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.exists():
            return read_grey(path) if suffix == ".png" else read_mat(path, "LabelMap")
    raise DataError(
        f"{folder} has no label of {name} ({' or '.join(f'{name}{s}' for s in SUFFIXES)}). "
        "Add it, or list the images to score (--ids)."
    )
