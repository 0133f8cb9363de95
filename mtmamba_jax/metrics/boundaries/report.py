"""A set's scores as files: scores, the precision-recall curve as a table and as a picture."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Mapping

import numpy as np
from etils import epath
from PIL import Image

from mtmamba_jax.files.paths import to_json, write_atomically
from mtmamba_jax.messages import markdown_table
from mtmamba_jax.metrics.boundaries.counts import THRESHOLDS
from mtmamba_jax.metrics.boundaries.scores import Sums, compute, curve
from mtmamba_jax.visualization.canvas import INK, Canvas

SCORES_FILE, TABLE_FILE, PICTURE_FILE = "boundaries.json", "curve.csv", "curve.png"
COLUMNS = (
    *("threshold", "precision", "recall", "f"),
    *("matched_true", "true", "matched_predicted", "predicted"),
)
"""Of the table: shares, and numbers of pixels in all images."""

_SIDE, _LEFT, _TOP, _RIGHT, _BOTTOM = 420, 48, 56, 30, 50  # pixels of the plot and around it
_GRID, _LINE = (222, 222, 222), (31, 98, 168)
_TICKS = [tick / 5 for tick in range(6)]
_LEVELS = [level / 10 for level in range(1, 10)]  # of F that are drawn


def scoring_settings(
    dataset: str,
    reading: str,
    max_distance: float,
    *,
    labels: pathlib.Path | None,
    only_published_images: bool,
    predictions: pathlib.Path | None = None,
    ids: pathlib.Path | None = None,
) -> dict[str, object]:
    """Returns what scores depend on, as files of scores have it.

    Args:
      dataset: whose figures they are like.
      reading: of true contours, one of `folders.READINGS`.
      max_distance: as a share of the diagonal.
      labels: their folder; None: the test set's own.
      only_published_images: whether those are left out that published figures leave out.
      predictions: their folder; None: a model's, of a run.
      ids: file of the images that are scored; None: it was not given.
    """
    places = {"predictions": predictions, "labels": labels, "ids": ids}
    return {
        "dataset": dataset,
        **{name: None if place is None else str(place) for name, place in places.items()},
        "only_published_images": only_published_images,
        "reading": reading,
        "max_distance": max_distance,
    }


def write_report(folder: epath.PathLike, sums: Sums, settings: Mapping[str, object]) -> None:
    """Writes `SCORES_FILE`, `TABLE_FILE` and `PICTURE_FILE`.

    Args:
      folder: made if it is not there; a bucket too.
      sums: over at least one image.
      settings: what is said of them beside the scores; `scoring_settings` and more.

    Raises:
      OSError: the folder cannot be written to.
    """
    folder, picture = epath.Path(folder), io.BytesIO()
    folder.mkdir(parents=True, exist_ok=True)
    record = {**settings, "images": int(sums["images"]), "scores": compute(sums)}
    write_atomically(folder / SCORES_FILE, (to_json(record, indent=2) + "\n").encode())
    write_atomically(folder / TABLE_FILE, _curve_table(sums).encode())
    draw_curve(sums).save(picture, "PNG")
    write_atomically(folder / PICTURE_FILE, picture.getvalue())


def _curve_table(sums: Sums) -> str:
    """Returns CSV, a line a threshold."""
    text, points = io.StringIO(), curve(sums["counts"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    shares = zip(THRESHOLDS, points.precision, points.recall, points.f, strict=True)
    for numbers, counts in zip(shares, sums["counts"], strict=True):
        writer.writerow([f"{number:.6g}" for number in numbers] + counts.tolist())
    return text.getvalue()


def score_table(sums: Sums) -> str:
    """Returns a table of the scores."""
    # 0.999 is no threshold of 1.
    scores = {
        name: f"{value:.{3 if name == 'threshold' else 2}f}"
        for name, value in compute(sums).items()
    }
    return markdown_table(("images", str(sums["images"])), scores.items())


def draw_curve(sums: Sums) -> Image.Image:
    """Draws precision against recall, odsF's threshold as a point, and lines of equal F."""
    canvas = Canvas(_LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM)
    _draw_grid(canvas)
    points, scores = curve(sums["counts"]), compute(sums)
    drawn = sums["counts"][:, 3] > 0  # where nothing is predicted there is no precision
    line = [
        _place(r, p) for r, p in zip(points.recall[drawn], points.precision[drawn], strict=True)
    ]
    if line:
        canvas.line(line, _LINE, width=2)
    canvas.dot(_place(scores["recall"] / 100, scores["precision"] / 100), 5, _LINE)
    title = f"odsF {scores['odsF']:.2f}   oisF {scores['oisF']:.2f}   AP {scores['AP']:.2f}"
    canvas.text(title, (_LEFT, 20), "lm", 15)
    return canvas.finish()


def _draw_grid(canvas: Canvas) -> None:
    for level in _LEVELS:
        # 2 P R / (P + R) = F.
        recall = np.linspace(level / (2 - level), 1, 400)
        precision = level * recall / (2 * recall - level)
        line = [_place(r, p) for r, p in zip(recall, precision, strict=True)]
        canvas.line(line, _GRID)
        x, y = _place(1, level / (2 - level))
        canvas.text(f"{level:.1f}", (x + 4, y), "lm", 10, (150, 150, 150))
    canvas.frame((_LEFT, _TOP), (_LEFT + _SIDE, _TOP + _SIDE), INK)
    for tick in _TICKS:
        x, y = _LEFT + _SIDE * tick, _TOP + _SIDE * (1 - tick)
        canvas.text(f"{tick:.1f}", (x, _TOP + _SIDE + 6), "ma", 12)
        canvas.text(f"{tick:.1f}", (_LEFT - 6, y), "rm", 12)
    canvas.text("recall", (_LEFT + _SIDE / 2, _TOP + _SIDE + 28), "ma", 13)
    canvas.text("precision", (_LEFT, _TOP - 6), "ls", 13)


def _place(recall: float, precision: float) -> tuple[float, float]:
    """Returns where a point of the curve is drawn."""
    return _LEFT + _SIDE * recall, _TOP + _SIDE * (1 - precision)
