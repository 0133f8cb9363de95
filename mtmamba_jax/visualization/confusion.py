"""Draws confusion matrices: what the pixels of each class are predicted as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from mtmamba_jax.visualization.figures import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NUMBERED = 60
"""Largest number of classes whose cells show percentages; more classes get smaller, plain cells."""

_EMPTY, _GRID = "#e8e8e8", "#d0d0d0"


def draw_confusion(
    title: str, class_names: Sequence[str], confusion: Int[np.ndarray, "c c"]
) -> Figure:
    """Draws a confusion matrix of pixel counts, each row divided by its sum.

    Rows are labels, columns predictions. The row of a class that labels no pixel is grey.
    """
    import matplotlib
    from matplotlib.figure import Figure

    count = len(class_names)
    numbered = count <= MOST_NUMBERED
    inches, font_size = (0.3, 9) if numbered else (0.1, 6)  # of a cell
    total = confusion.sum(axis=1, keepdims=True)
    shares = np.where(total > 0, confusion / np.maximum(total, 1), np.nan)

    figure = Figure((inches * count, inches * count), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    colormap = matplotlib.colormaps["Blues"].with_extremes(bad=_EMPTY)
    axes.imshow(shares, colormap, vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks(range(count), class_names, fontsize=font_size, rotation=90)
    axes.set_yticks(range(count), class_names, fontsize=font_size)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, pad=4)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.tick_params(which="minor", length=0, top=False)
    axes.grid(which="minor", color=_GRID, linewidth=0.6)
    axes.spines[:].set_color(_GRID)
    if numbered:
        for i, j in np.argwhere(np.nan_to_num(shares).round(2) > 0):
            color = "white" if shares[i, j] > 0.5 else "black"
            text = f"{100 * shares[i, j]:.0f}"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=7.5)
    axes.set_title(f"{title}, % of each label", loc="left", fontsize=11, pad=10)
    axes.set_ylabel("label", fontsize=10, labelpad=8)
    axes.set_xlabel("prediction", fontsize=10, labelpad=8)
    axes.xaxis.set_label_position("bottom")
    return figure
