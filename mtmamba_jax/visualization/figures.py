"""Turns matplotlib figures into PNG files and arrays, without pyplot and its global state.

matplotlib takes about half a second to import, so functions import it when they draw.
"""

from __future__ import annotations

import io
import pathlib
from typing import TYPE_CHECKING

import numpy as np
from etils import epath
from jaxtyping import UInt8

from mtmamba_jax.files.paths import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
"""Pixels per inch of every figure."""


def render_figure(figure: Figure) -> UInt8[np.ndarray, "h w 3"]:
    """Renders a figure at its own size, as RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_figure(path: pathlib.Path | epath.Path, figure: Figure) -> None:
    """Writes a figure as PNG, cropped or extended to what it shows.

    Raises:
      OSError: If the file cannot be written.
    """
    contents = io.BytesIO()
    figure.savefig(contents, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.1)
    write_atomically(path, contents.getvalue())
