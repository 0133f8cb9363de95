"""Scores folders of predictions: which images count, and their counts from worker processes."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int, Integer, UInt8
from scipy import ndimage

from mtmamba_jax.data_pipelines.parallel import in_order
from mtmamba_jax.data_pipelines.read_files import DataError, read_grey, read_list, read_mat
from mtmamba_jax.messages import check_name
from mtmamba_jax.metrics.boundaries.contours import contour_of_regions, suppress
from mtmamba_jax.metrics.boundaries.counts import count_matches

LABEL_KINDS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "regions": contour_of_regions,
    "contours": lambda labels: labels != 0,
}
"""How to get the true contour [h w] from a label, by what the label holds: contours lie between the
pixels of different regions, or where the label is not 0. Published figures use regions, both for
PASCAL-Context's LabelMap, which has regions, and for NYUDv2's edge files, whose lines become
regions with a contour on either side."""

SUFFIXES = (".png", ".mat")
"""Suffixes of labels. A MATLAB file holds a LabelMap, as PASCAL-Context's files do."""

EXCLUDED: Mapping[str, pathlib.Path] = {
    "pascal_context": pathlib.Path(__file__).with_name("pascal_context_excluded.txt")
}
"""Lists of the test images that a dataset's published figures exclude.

For PASCAL-Context these are 2,607 of 5,105 images, on which COB was validated (Maninis et al.,
"Convolutional oriented boundaries", ECCV 2016); the other 2,498 are scored. The list is COB's:
github.com/kmaninis/COB at e33f10e, src/external/gt_wrappers/gt_sets/PASCALContext/voc_val.txt
(Copyright (c) 2016 ETH Zurich, BSD 2-clause). Together with the 4,998 training images it makes up
the 7,605 of `trainval_new.txt` there."""


def find_ids(
    dataset: str, predictions: pathlib.Path, listed: pathlib.Path | None, include_all: bool = False
) -> tuple[str, ...]:
    """Returns the names of the images to score.

    Args:
      dataset: Dataset whose published figures may exclude images (`EXCLUDED`).
      predictions: Folder of NAME.png, where NAME may contain subfolders.
      listed: File of names, one per line, all of which are scored. None scores all predictions,
        sorted, except excluded images.
      include_all: Whether to score excluded images too.

    Raises:
      ValueError: If there is no image to score, if both `listed` and `include_all` are given, or if
        the file is not a list of names (`DataError`).
    """
    if listed:
        if include_all:
            raise ValueError(
                f"--ids={listed} scores only the listed images and --all scores every prediction: "
                "choose one of the two."
            )
        return read_list(listed)
    found = sorted(
        path.relative_to(predictions).as_posix().removesuffix(path.suffix)
        for path in predictions.rglob("*.png")
    )
    excluded = frozenset() if include_all else excluded_ids(dataset)
    ids = tuple(name for name in found if name not in excluded)
    if not ids:
        but = ", all of which the published figures exclude (--all scores them)" if found else ""
        raise ValueError(
            f"There is no image to score: {predictions} holds {len(found)} files NAME.png{but}. "
            "Predictions are grey levels 0..255 of the probability of a contour."
        )
    return ids


def excluded_ids(dataset: str) -> frozenset[str]:
    """Returns the names of images that a dataset's published figures exclude; usually none."""
    return frozenset(read_list(EXCLUDED[dataset]) if dataset in EXCLUDED else ())


def count_folder(
    ids: Sequence[str],
    predictions: pathlib.Path,
    labels: pathlib.Path,
    *,
    label_kind: str,
    max_distance: float,
    num_workers: int = 0,
) -> Iterator[Int[np.ndarray, "thresholds 4"]]:
    """Yields `count_matches` of each image, in order, with only a few images in memory.

    Args:
      ids: Names of the images.
      predictions: Folder of NAME.png.
      labels: Folder of NAME.png or NAME.mat.
      label_kind: See `count_prediction`.
      max_distance: See `count_prediction`.
      num_workers: Number of worker processes; 0 counts in this process. It does not affect counts.

    Raises:
      ValueError: If the label kind is unknown, or a file is missing or invalid (`DataError`).
      RuntimeError: If the extra "data" is not installed or a worker process was killed.
    """
    check_name("label kind", label_kind, LABEL_KINDS)
    work = [(name, predictions, labels, label_kind, max_distance) for name in ids]
    return in_order(_count_files, work, num_workers)


def _count_files(
    name: str, predictions: pathlib.Path, labels: pathlib.Path, label_kind: str, max_distance: float
) -> np.ndarray:
    levels = read_grey(predictions / f"{name}.png")
    if levels.dtype != np.uint8:
        raise DataError(
            f"{predictions / name}.png has {8 * levels.itemsize} bits, expected 8: grey levels "
            "0..255 of the probability of a contour."
        )
    return count_against_file(name, levels, labels, label_kind, max_distance)


def count_against_file(
    name: str, levels: np.ndarray, labels: pathlib.Path, label_kind: str, max_distance: float
) -> Int[np.ndarray, "thresholds 4"]:
    """Returns `count_prediction` of the image's label in a folder.

    Raises:
      DataError: If the label is missing, invalid or of another size.
    """
    label = read_label(labels, name)
    if label.shape != levels.shape:
        sizes = ["x".join(map(str, array.shape)) for array in (levels, label)]
        raise DataError(
            f"The prediction of {name} is {sizes[0]} (height x width), its label in {labels} "
            f"{sizes[1]}. Both must have the same size: is the label from another version of the "
            "dataset?"
        )
    return count_prediction(levels, label, label_kind, max_distance)


def count_prediction(
    levels: UInt8[np.ndarray, "h w"],
    label: Integer[np.ndarray, "h w"],
    label_kind: str,
    max_distance: float,
    ignore: int | None = None,
) -> Int[np.ndarray, "thresholds 4"]:
    """Returns `count_matches` of a prediction and a label.

    Args:
      levels: Predicted probability times 255.
      label: Label values.
      label_kind: Key of `LABEL_KINDS`.
      max_distance: Maximum distance of matched pixels, as a fraction of the image diagonal.
      ignore: Value of unlabelled pixels. They and their neighbours hold no true contour, and
        predictions on them do not count. None if every pixel is labelled.

    Raises:
      ValueError: If the maps differ in size or have the wrong dtype.
    """
    strength = suppress(levels)
    if ignore is None:
        return count_matches(strength, LABEL_KINDS[label_kind](label), max_distance)
    unlabelled = label == ignore
    # The border of the labelled area is not a contour either.
    near = np.asarray(ndimage.binary_dilation(unlabelled, np.ones((3, 3), bool)), bool)
    contour = LABEL_KINDS[label_kind](np.where(unlabelled, 0, label))
    contour[near] = False
    return count_matches(np.where(unlabelled, 0.0, strength), contour, max_distance)


def read_label(folder: pathlib.Path, name: str) -> Integer[np.ndarray, "h w"]:
    """Returns an image's label from a folder of NAME.png or NAME.mat.

    Raises:
      DataError: If the label is missing or cannot be read.
    """
    for suffix in SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.exists():
            return read_grey(path) if suffix == ".png" else read_mat(path, "LabelMap")
    raise DataError(
        f"{folder} has no label of {name} ({' or '.join(f'{name}{s}' for s in SUFFIXES)}). "
        "Add it, or list the images to score (--ids)."
    )
