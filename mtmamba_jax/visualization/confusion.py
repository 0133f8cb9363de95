"""A confusion matrix as a picture: what the pixels of each class are taken for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mtmamba_jax.visualization.canvas import INK, Canvas, text_width

MOST_NUMBERED = 60
"""Classes of which cells hold numbers too; more are drawn in smaller cells."""

_LIGHT, _DARK = np.array((255, 255, 255)), np.array((8, 69, 148))
_EMPTY, _GRID = (232, 232, 232), (205, 205, 205)
_LEGEND = "rows: labelled, columns: predicted, % of the row"
_GAP = 8  # pixels around it, and between names and cells
_TITLE = 44  # of the lines above it


def draw_confusion(title: str, class_names: Sequence[str], confusion: np.ndarray) -> Image.Image:
    """Draws a confusion matrix, each row divided by its sum.

    A row of a class that no pixel is labelled as is grey.

    Args:
      title: written above.
      class_names: of the c classes.
      confusion: pixels, [labelled predicted], c x c.
    """
    count = len(class_names)
    numbered = count <= MOST_NUMBERED
    cell, font = (24, 12) if numbered else (11, 9)
    names = int(max(text_width(name, font) for name in class_names)) + 2 * _GAP
    left, top = names, _TITLE + names
    side = cell * count
    head = max(text_width(title, 15), text_width(_LEGEND, 12))
    width = max(left + side, int(head)) + 2 * _GAP
    canvas = Canvas(width, top + side + 2 * _GAP, detail=2)
    canvas.text(title, (_GAP, 18), "lm", 15)
    canvas.text(_LEGEND, (_GAP, 38), "lm", 12)
    total = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(total, 1)
    for i, name in enumerate(class_names):
        middle = (i + 0.5) * cell
        canvas.text(name, (left - _GAP, top + middle), "rm", font)
        canvas.upward_text(name, (left + middle, top - _GAP), font)
        for j in range(count):
            corner = (left + j * cell, top + i * cell)
            fill = _shade(shares[i, j]) if total[i] else _EMPTY
            canvas.area(corner, (corner[0] + cell, corner[1] + cell), fill)
            percent = round(100 * shares[i, j])
            if numbered and percent:
                ink = (255, 255, 255) if shares[i, j] > 0.5 else INK
                place = (corner[0] + cell / 2, corner[1] + cell / 2)
                canvas.text(str(percent), place, "mm", 10, ink)
    for i in range(count + 1):
        at = i * cell
        canvas.line([(left + at, top), (left + at, top + side)], _GRID)
        canvas.line([(left, top + at), (left + side, top + at)], _GRID)
    return canvas.finish()


def _shade(share: float) -> tuple[int, int, int]:
    red, green, blue = (_LIGHT + (_DARK - _LIGHT) * share).round().astype(int).tolist()
    return red, green, blue
