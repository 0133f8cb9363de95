"""Renders task maps as RGB images, and arranges images in titled grids."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from mtmamba_jax.files.paths import write_atomically
from mtmamba_jax.tasks.readout import is_ignored, normal_levels, to_levels
from mtmamba_jax.tasks.table import Task

OPACITY = 0.55  # of a map over its image
CELL = 320  # pixels of the longer side of an image in a grid
_GAP, _TITLE = 6, 22  # pixels: between images, height of a title line
_INK, _PAPER = (40, 40, 40), (255, 255, 255)
IGNORED = (224, 224, 192)
"""RGB colour of ignored pixels, the cream of Pascal VOC: black already means background, no
boundary or far away."""


def _render_classes(task, value, like):
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(task.palette)] = task.palette
    return palette[np.where(is_ignored(task, value), 255, value).astype(np.uint8)]


def _render_depth(task, value, like):
    """Renders near as yellow and far as dark blue, over the `depth_range` of `like`.

    Near means small values, or large ones for quantities that grow with image size (disparity).
    """
    low, high = depth_range(task, like)
    nearness = high - value if task.scale_power < 0 else value - low
    return apply_colormap(nearness / max(high - low, 1e-6), cv2.COLORMAP_VIRIDIS)


def _render_probability(task, value, like):
    return np.repeat(to_levels(value)[..., None], 3, axis=-1)


RENDERERS: Mapping[str, Callable[[Task, np.ndarray, np.ndarray], np.ndarray]] = {
    "classes": _render_classes,
    "depth": _render_depth,
    "normals": lambda task, value, like: normal_levels(value),
    "probability": _render_probability,
    "saliency": _render_probability,
}
"""The function that renders a value for each `Task.quantity`; see `render_map`."""


def depth_range(task: Task, value: Float[np.ndarray, "h w"]) -> tuple[float, float]:
    """Returns the 2nd and 98th percentile of a depth map; 0 and 1 if every pixel is ignored."""
    valid = value[~is_ignored(task, value)]
    low, high = np.percentile(valid, (2, 98)) if valid.size else (0.0, 1.0)
    return float(low), float(high)


def render_map(
    task: Task, value: np.ndarray, like: np.ndarray | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Renders a prediction or a label as RGB, with ignored pixels in the colour `IGNORED`.

    Args:
      task: The map's task.
      value: The map, from `readout.to_value` or `readout.label_value`, [h w] or [h w 3].
      like: A map of the same task whose depth range the colours span; `value` if None.
    """
    # A predicted class never reaches 255, and no depth, normal or probability equals it.
    image = RENDERERS[task.quantity](task, value, value if like is None else like)
    image[is_ignored(task, value)] = IGNORED
    return image


def apply_colormap(
    share: Float[np.ndarray, "h w"], colormap: int | UInt8[np.ndarray, "256 1 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Maps numbers to RGB colours.

    Args:
      share: 0 is the colormap's first colour and 1 its last; values outside are clipped.
      colormap: An OpenCV colormap, or BGR colours.
    """
    bgr = cv2.applyColorMap((255 * np.clip(share, 0.0, 1.0)).astype(np.uint8), colormap)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def overlay(
    image: UInt8[np.ndarray, "h w 3"], rendered: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Blends a rendered map over an image."""
    return np.asarray(cv2.addWeighted(rendered, OPACITY, image, 1.0 - OPACITY, 0))


def thumbnail(image: UInt8[np.ndarray, "h w 3"], cell: int = CELL) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Shrinks an image to the size that it has in `image_grid`, unless it is smaller."""
    if max(image.shape) <= cell:
        return image
    return cv2.resize(image, _cell_size(image, cell), interpolation=cv2.INTER_AREA)


def _cell_size(image: np.ndarray, cell: int) -> tuple[int, int]:
    """Returns the width and height of an image whose longer side is `cell` pixels."""
    height, width = image.shape[:2]
    scale = cell / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def image_grid(
    rows: Sequence[Mapping[str, UInt8[np.ndarray, "h w 3"]]], *, cell: int = CELL
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Arranges titled RGB images of one size in rows.

    Args:
      rows: Images of each row, by title.
      cell: Length of the longer side that every image is resized to, in pixels.
    """
    import matplotlib  # slow to import

    # The font of the legends, matplotlib's default.
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 12)
    first = next(iter(rows[0].values()))
    size = _cell_size(first, cell)
    columns = max(len(row) for row in rows)
    titles = max(math.ceil(font.getlength(title)) for row in rows for title in row)
    pitch = (max(size[0], titles) + _GAP, size[1] + _TITLE + _GAP)
    sheet = Image.new("RGB", (columns * pitch[0] + _GAP, len(rows) * pitch[1] + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    # Nearest-neighbour enlargement shows the network's pixels, not a smoothed version of them.
    interpolation = cv2.INTER_NEAREST if cell > max(first.shape) else cv2.INTER_AREA
    for i, row in enumerate(rows):
        for j, (title, image) in enumerate(row.items()):
            x, y = _GAP + j * pitch[0], _GAP + i * pitch[1]
            draw.text((x, y + _TITLE - 8), title, fill=_INK, font=font, anchor="ls")
            resized = cv2.resize(image, size, interpolation=interpolation)
            sheet.paste(Image.fromarray(resized), (x, y + _TITLE))
    return np.asarray(sheet)


def write_png(path: pathlib.Path | epath.Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes an RGB image, completely or not at all.

    Raises:
      OSError: If the file cannot be written.
    """
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    write_atomically(path, encoded.tobytes())
