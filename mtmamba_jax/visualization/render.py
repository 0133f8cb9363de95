"""Maps as pictures: one way to draw each kind of task, and panels of many."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from mtmamba_jax.readout import is_ignored, normal_levels, to_levels
from mtmamba_jax.tasks import Task

_GAP, _TITLE = 6, 22  # pixels between pictures, and of a title line
_INK, _PAPER = (40, 40, 40), (255, 255, 255)
IGNORED = (224, 224, 192)
"""Colour of ignored pixels, VOC's: black is background, no boundary, far away."""


def _draw_classes(task: Task, value: np.ndarray, like: np.ndarray) -> np.ndarray:
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(task.palette)] = task.palette
    return palette[np.where(is_ignored(task, value), 255, value).astype(np.uint8)]


def _draw_depth(task: Task, value: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Near is yellow, far is dark blue, over `depth_range` of the map that it is drawn like.

    Near is where values are small, or large where they grow as the image does (disparity).
    """
    low, high = depth_range(task, like)
    nearness = high - value if task.scale_power < 0 else value - low
    return apply_colormap(nearness / max(high - low, 1e-6), cv2.COLORMAP_VIRIDIS)


def _draw_normals(task: Task, value: np.ndarray, like: np.ndarray) -> np.ndarray:
    return normal_levels(value)


def _draw_probability(task: Task, value: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.repeat(to_levels(value)[..., None], 3, axis=-1)


RENDERERS: Mapping[str, Callable[[Task, np.ndarray, np.ndarray], np.ndarray]] = {
    "classes": _draw_classes,
    "depth": _draw_depth,
    "normals": _draw_normals,
    "probability": _draw_probability,
    "saliency": _draw_probability,
}
"""How a value becomes a picture, for each `Task.display`."""


def depth_range(task: Task, value: np.ndarray) -> tuple[float, float]:
    """Returns the 2nd and 98th percentile of a map of depth, 0 and 1 where it is all ignored."""
    seen = value[~is_ignored(task, value)]
    low, high = np.percentile(seen, (2, 98)) if seen.size else (0.0, 1.0)
    return float(low), float(high)


def render_map(task: Task, value: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Draws a value or a label's value as uint8 RGB [h w 3]; ignored pixels in VOC's cream.

    Args:
      task: whose map it is.
      value: the map.
      like: another map of the task, that the colours of depth are to mean the same in.
    """
    # A predicted class never reaches 255, and no depth, normal or probability equals it.
    picture = RENDERERS[task.display](task, value, value if like is None else like)
    picture[is_ignored(task, value)] = IGNORED
    return picture


def apply_colormap(share: np.ndarray, colours: int | np.ndarray) -> np.ndarray:
    """Draws numbers [h w] in the colours of a scale: uint8 RGB [h w 3].

    Args:
      share: 0 is the scale's first colour, 1 its last; what lies outside takes the nearer of them.
      colours: an OpenCV colour map, or uint8 BGR [256 1 3].
    """
    bgr = cv2.applyColorMap((255 * np.clip(share, 0.0, 1.0)).astype(np.uint8), colours)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def overlay(photo: np.ndarray, picture: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """Lays a picture over a photo of the same size, both uint8 RGB."""
    return (opacity * picture + (1.0 - opacity) * photo).astype(np.uint8)


def image_grid(rows: Sequence[Mapping[str, np.ndarray]], *, cell: int = 320) -> np.ndarray:
    """Arranges titled pictures in rows: uint8 RGB [h w 3].

    Args:
      rows: for each row {title: uint8 RGB picture}; all of one size.
      cell: the longer side that each picture is drawn with.
    """
    height, width = next(iter(rows[0].values())).shape[:2]
    scale = cell / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = max(len(row) for row in rows)
    font = ImageFont.load_default(14)
    titles = max(math.ceil(font.getlength(title)) for row in rows for title in row)
    pitch = (max(size[0], titles) + _GAP, size[1] + _TITLE + _GAP)
    sheet = Image.new("RGB", (columns * pitch[0] + _GAP, len(rows) * pitch[1] + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    # Enlarged pixels stay pixels: what the network said, not what smoothing makes of it.
    interpolation = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
    for i, row in enumerate(rows):
        for j, (title, picture) in enumerate(row.items()):
            x, y = _GAP + j * pitch[0], _GAP + i * pitch[1]
            draw.text((x, y + 2), title, fill=_INK, font=font)
            drawn = cv2.resize(picture, size, interpolation=interpolation)
            sheet.paste(Image.fromarray(drawn), (x, y + _TITLE))
    return np.asarray(sheet)


def write_png(path: pathlib.Path | epath.Path, picture: np.ndarray) -> None:
    """Writes a uint8 RGB picture.

    Raises:
      OSError: it could not be written.
    """
    _, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    path.write_bytes(encoded.tobytes())
