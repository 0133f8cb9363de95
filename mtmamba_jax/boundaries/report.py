"""A set's scores as files: scores, the precision-recall curve as a table and as a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from mtmamba_jax.boundaries.counts import THRESHOLDS
from mtmamba_jax.boundaries.scores import Sums, compute, curve
from mtmamba_jax.tables import two_columns

SCORES_FILE, TABLE_FILE, PICTURE_FILE = "boundaries.json", "curve.csv", "curve.png"
COLUMNS = (
    *("threshold", "precision", "recall", "f"),
    *("matched_true", "true", "matched_predicted", "predicted"),
)
"""Of the table: shares, and numbers of pixels in all images."""

_SIDE, _LEFT, _TOP, _RIGHT, _BOTTOM = 420, 48, 56, 30, 50  # pixels of the plot and around it
_DETAIL = 4  # drawn this much larger, then made smaller: smooth lines
_INK, _GRID, _LINE = (40, 40, 40), (222, 222, 222), (31, 98, 168)
_TICKS = [tick / 5 for tick in range(6)]
_LEVELS = [level / 10 for level in range(1, 10)]  # of F that are drawn


def write_report(folder: epath.PathLike, sums: Sums, settings: Mapping[str, object]) -> None:
    """Writes `SCORES_FILE`, `TABLE_FILE` and `PICTURE_FILE`.

    Args:
      folder: made if it is not there; a bucket too.
      sums: over at least one image.
      settings: what is said of them beside the scores.

    Raises:
      OSError: the folder cannot be written to.
    """
    folder, picture = epath.Path(folder), io.BytesIO()
    folder.mkdir(parents=True, exist_ok=True)
    record = {**settings, "images": int(sums["images"]), "scores": compute(sums)}
    (folder / SCORES_FILE).write_text(json.dumps(record, indent=2) + "\n")
    (folder / TABLE_FILE).write_text(_curve_table(sums))
    draw_curve(sums).save(picture, "PNG")
    (folder / PICTURE_FILE).write_bytes(picture.getvalue())


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
    scores = {name: f"{value:.2f}" for name, value in compute(sums).items()}
    return two_columns({"images": str(sums["images"]), **scores})


def draw_curve(sums: Sums) -> Image.Image:
    """Draws precision against recall, odsF's threshold as a point, and lines of equal F."""
    size = (_LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM)
    picture = Image.new("RGB", tuple(_DETAIL * length for length in size), "white")
    draw = ImageDraw.Draw(picture)
    _draw_grid(draw)
    points, scores = curve(sums["counts"]), compute(sums)
    drawn = sums["counts"][:, 3] > 0  # where nothing is predicted there is no precision
    line = [
        _place(r, p) for r, p in zip(points.recall[drawn], points.precision[drawn], strict=True)
    ]
    draw.line(line, fill=_LINE, width=2 * _DETAIL, joint="curve")
    x, y = _place(scores["recall"] / 100, scores["precision"] / 100)
    radius = 5 * _DETAIL
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_LINE)
    title = f"odsF {scores['odsF']:.2f}   oisF {scores['oisF']:.2f}   AP {scores['AP']:.2f}"
    _write(draw, title, (_LEFT, 20), "lm", 15)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _draw_grid(draw: ImageDraw.ImageDraw) -> None:
    for level in _LEVELS:
        # 2 P R / (P + R) = F.
        recall = np.linspace(level / (2 - level), 1, 400)
        precision = level * recall / (2 * recall - level)
        line = [_place(r, p) for r, p in zip(recall, precision, strict=True)]
        draw.line(line, fill=_GRID, width=_DETAIL)
        x, y = (length / _DETAIL for length in _place(1, level / (2 - level)))
        _write(draw, f"{level:.1f}", (x + 4, y), "lm", 10, (150, 150, 150))
    (left, bottom), (right, top) = _place(0, 0), _place(1, 1)
    draw.rectangle((left, top, right, bottom), outline=_INK, width=_DETAIL)
    for tick in _TICKS:
        x, y = _LEFT + _SIDE * tick, _TOP + _SIDE * (1 - tick)
        _write(draw, f"{tick:.1f}", (x, _TOP + _SIDE + 6), "ma", 12)
        _write(draw, f"{tick:.1f}", (_LEFT - 6, y), "rm", 12)
    _write(draw, "recall", (_LEFT + _SIDE / 2, _TOP + _SIDE + 28), "ma", 13)
    _write(draw, "precision", (_LEFT, _TOP - 6), "ls", 13)


def _place(recall: float, precision: float) -> tuple[float, float]:
    """Returns where a point of the curve is drawn."""
    return _DETAIL * (_LEFT + _SIDE * recall), _DETAIL * (_TOP + _SIDE * (1 - precision))


def _write(draw, text, place, anchor, size, color=_INK) -> None:
    font = ImageFont.load_default(_DETAIL * size)
    draw.text(tuple(_DETAIL * at for at in place), text, fill=color, font=font, anchor=anchor)
