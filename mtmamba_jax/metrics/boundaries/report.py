"""Writes a test set's boundary scores and precision-recall curve to files."""

import contextlib
import csv
import io
import json
import os
import pathlib
from collections.abc import Mapping

from etils import epath

from mtmamba_jax.files.json_files import write_json
from mtmamba_jax.files.paths import is_remote, write_atomically
from mtmamba_jax.messages import markdown_table
from mtmamba_jax.metrics.boundaries.counts import THRESHOLDS
from mtmamba_jax.metrics.boundaries.scores import BoundarySums, compute, curve

SCORES_FILE, TABLE_FILE = "boundaries.json", "curve.csv"
COLUMNS = (
    *("threshold", "precision", "recall", "f"),
    *("matched_true", "true", "matched_predicted", "predicted"),
)
"""Columns of `TABLE_FILE`: fractions, then numbers of pixels in all images."""


def report_settings(
    *,
    dataset: str,
    predictions: pathlib.Path | None = None,
    labels: pathlib.Path | None,
    ids: pathlib.Path | None = None,
    only_published_images: bool,
    label_kind: str,
    max_distance: float,
) -> dict[str, object]:
    """Returns the settings that scores depend on besides the model, as reports record them.

    Args:
      dataset: Name of the dataset.
      predictions: Folder of saved predictions; None if a model made them.
      labels: Folder of labels; None for the test set's own.
      ids: File with the names of the scored images, if one was given.
      only_published_images: Whether images that the published figures exclude were left out.
      label_kind: Key of `folders.LABEL_KINDS`.
      max_distance: Maximum distance of matched pixels, as a fraction of the image diagonal.
    """
    return {
        "dataset": dataset,
        "predictions": predictions and str(predictions),
        "labels": labels and str(labels),
        "ids": ids and str(ids),
        "only_published_images": only_published_images,
        "label_kind": label_kind,
        "max_distance": max_distance,
    }


def write_report(
    folder: epath.PathLike, sums: BoundarySums, settings: Mapping[str, object]
) -> None:
    """Writes `SCORES_FILE` and `TABLE_FILE` to a folder or bucket, which is created if needed.

    Args:
      folder: Destination.
      sums: Sums over at least one image.
      settings: Entries saved beside the scores, such as `report_settings`.

    Raises:
      OSError: If the folder is not writable.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = {**settings, "images": int(sums["images"]), "scores": compute(sums)}
    write_json(folder / SCORES_FILE, record)
    write_atomically(folder / TABLE_FILE, _curve_csv(sums).encode())


def remove_report_of_other_step(folder: epath.Path, step: int, *drawings: str) -> None:
    """Removes what `write_report` wrote for a checkpoint of another step, and drawings beside it.

    The folder is removed too if it holds nothing else.
    """
    if not (folder / SCORES_FILE).exists():
        return
    if json.loads((folder / SCORES_FILE).read_text()).get("step") == step:
        return
    for name in (*drawings, TABLE_FILE, SCORES_FILE):
        (folder / name).unlink(missing_ok=True)
    if not is_remote(folder):  # a bucket has no empty folders
        with contextlib.suppress(OSError):
            os.rmdir(folder)  # epath's raises a ValueError if there is more in it


def _curve_csv(sums: BoundarySums) -> str:
    text, points = io.StringIO(), curve(sums["counts"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    fractions = zip(THRESHOLDS, points.precision, points.recall, points.f, strict=True)
    for numbers, counts in zip(fractions, sums["counts"], strict=True):
        writer.writerow([f"{number:.6g}" for number in numbers] + counts.tolist())
    return text.getvalue()


def score_table(sums: BoundarySums) -> str:
    """Returns a table of the scores to print."""
    # Three decimals, so that the threshold 0.999 is not printed as 1.00.
    digits = {"threshold": 3}
    rows = [(name, f"{value:.{digits.get(name, 2)}f}") for name, value in compute(sums).items()]
    return markdown_table(("images", str(sums["images"])), rows)
