"""Draws the precision-recall curve of predicted boundaries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mtmamba_jax.metrics.boundaries.scores import BoundarySums, compute, curve
from mtmamba_jax.visualization.figures import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE_FILE = "curve.png"

_LINE = "#1f62a8"
_ISO_LINE, _ISO_TEXT = "#dcdcdc", "#909090"
_ISO_LEVELS = np.arange(1, 10) / 10  # values of F with a line of their own


def draw_precision_recall(sums: BoundarySums) -> Figure:
    """Draws precision against recall, a dot at odsF's threshold, and lines of equal F.

    `sums` must be over at least one image.
    """
    from matplotlib.figure import Figure

    points, scores = curve(sums["counts"]), compute(sums)
    figure = Figure((5.2, 5.2), dpi=DPI)
    axes = figure.add_subplot()
    for level in _ISO_LEVELS:
        recall = np.linspace(level / (2 - level), 1, 200)
        # Solved from F = 2 P R / (P + R).
        axes.plot(recall, level * recall / (2 * recall - level), color=_ISO_LINE, linewidth=0.8)
        axes.text(1.015, level / (2 - level), f"{level:.1f}", color=_ISO_TEXT, size=8, va="center")
    axes.text(1.015, 1, "F", color=_ISO_TEXT, size=8, va="center")
    predicted = sums["counts"][:, 3] > 0  # precision is undefined where nothing is predicted
    axes.plot(points.recall[predicted], points.precision[predicted], color=_LINE, linewidth=2)
    axes.plot(scores["recall"] / 100, scores["precision"] / 100, "o", color=_LINE, markersize=9)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision", aspect="equal")
    title = "    ".join(f"{name} {scores[name]:.2f}" for name in ("odsF", "oisF", "AP"))
    axes.set_title(title, fontsize=11, pad=10)
    for line in axes.lines:
        line.set_clip_on(False)
    return figure
