"""Adds legends of class names and colours below images of task maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from mtmamba_jax.tasks.table import Task
from mtmamba_jax.visualization.figures import DPI, render_figure
from mtmamba_jax.visualization.render import IGNORED

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.patches import Patch

_EDGE = "#a0a0a0"  # of a colour sample: white and cream need one on white paper


def add_legend(
    image: UInt8[np.ndarray, "h w 3"], tasks: Sequence[Task], maps: Mapping[str, Sequence]
) -> UInt8[np.ndarray, "h2 w 3"]:
    """Adds a legend of the classes in some maps below an image, most frequent classes first.

    Only tasks with classes get one; `maps` has the maps of each task that the image shows, by name.
    """
    legends = [
        _draw_legend(task.name, list(_class_patches(task, maps[task.name])), image.shape[1])
        for task in tasks
        if task.quantity == "classes"
    ]
    return np.concatenate([image, *legends]) if legends else image


def _class_patches(task: Task, maps: Sequence[np.ndarray]) -> Iterator[Patch]:
    from matplotlib.patches import Patch

    values = np.concatenate([value.ravel() for value in maps])
    ignored = values == task.ignore
    counts = np.bincount(values[~ignored].astype(np.int64), minlength=len(task.class_names))
    order = np.argsort(-counts, kind="stable")
    found = [(task.palette[i], task.class_names[i]) for i in order if counts[i]]
    if ignored.any():
        found.append((IGNORED, "(ignored)"))
    for (red, green, blue), name in found:
        color = (red / 255, green / 255, blue / 255)
        yield Patch(facecolor=color, edgecolor=_EDGE, linewidth=0.8, label=name)


def _draw_legend(title: str, patches: list[Patch], width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draws one task's legend, `width` pixels wide, in columns as wide as the longest name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / DPI, 1), dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()  # measures text
    column = _place_legend(figure, title, patches, 1).get_window_extent(renderer).width
    legend = _place_legend(figure, title, patches, max(1, int(width // column)))
    height = np.ceil(legend.get_window_extent(renderer).height)
    figure.set_size_inches(width / DPI, height / DPI)
    return render_figure(figure)


def _place_legend(figure: Figure, title: str, patches: list[Patch], columns: int) -> Legend:
    """Replaces a figure's legend."""
    figure.legends.clear()
    # matplotlib fills columns first; reorder so that the most frequent classes read row by row.
    by_column = [patch for i in range(columns) for patch in patches[i::columns]]
    return figure.legend(
        handles=by_column,
        title=title,
        ncols=columns,
        loc="upper left",
        bbox_to_anchor=(0, 1),
        alignment="left",
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        handlelength=1,
        handleheight=1,
        columnspacing=1.4,
        borderpad=0.5,
        borderaxespad=0,
    )
