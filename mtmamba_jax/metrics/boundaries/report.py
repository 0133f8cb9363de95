"""Writes a test set's boundary scores and precision-recall curve to files."""

import csv
import io
from collections.abc import Mapping

from etils import epath

from mtmamba_jax.files.paths import to_json, write_atomically
from mtmamba_jax.messages import markdown_table
from mtmamba_jax.metrics.boundaries.counts import THRESHOLDS
from mtmamba_jax.metrics.boundaries.scores import Sums, compute, curve

SCORES_FILE, TABLE_FILE = "boundaries.json", "curve.csv"
COLUMNS = (
    *("threshold", "precision", "recall", "f"),
    *("matched_true", "true", "matched_predicted", "predicted"),
)
"""Columns of `TABLE_FILE`: fractions, then numbers of pixels in all images."""


def write_report(folder: epath.PathLike, sums: Sums, settings: Mapping[str, object]) -> None:
    """Writes `SCORES_FILE` and `TABLE_FILE` to a folder or bucket, which is created if needed.

    Args:
      folder: Destination.
      sums: Sums over at least one image.
      settings: Entries saved beside the scores, such as the dataset and the maximum distance.

    Raises:
      OSError: If the folder is not writable.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = {**settings, "images": int(sums["images"]), "scores": compute(sums)}
    write_atomically(folder / SCORES_FILE, (to_json(record, indent=2) + "\n").encode())
    write_atomically(folder / TABLE_FILE, _curve_csv(sums).encode())


def _curve_csv(sums: Sums) -> str:
    text, points = io.StringIO(), curve(sums["counts"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    fractions = zip(THRESHOLDS, points.precision, points.recall, points.f, strict=True)
    for numbers, counts in zip(fractions, sums["counts"], strict=True):
        writer.writerow([f"{number:.6g}" for number in numbers] + counts.tolist())
    return text.getvalue()


def score_table(sums: Sums) -> str:
    """Returns a table of the scores to print."""
    # Three decimals, so that the threshold 0.999 is not printed as 1.00.
    digits = {"threshold": 3}
    rows = [(name, f"{value:.{digits.get(name, 2)}f}") for name, value in compute(sums).items()]
    return markdown_table(("images", str(sums["images"])), rows)
