"""What the boundary benchmark does to maps before contours are matched."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

LEVELS = 255
"""Predictions are files of 8 bits: a probability is a level / 255."""

_RADIUS = 4  # of the triangle filter before gradients, pixels
_FADE = 5  # pixels at the border over which contours fade in
_MARGIN = 1.01  # a neighbour must be this much stronger to suppress a pixel
_TINY = 1e-5  # keeps the slope finite


def orientation(levels: np.ndarray) -> np.ndarray:
    """Returns the direction across contours, radians in [0, pi), float64 [h w].

    With second derivatives of the smoothed map E (Dollar, Zitnick, "Fast edge detection using
    structured forests", PAMI 2015), x to the right and y down,
    atan(E_yy * sign(-E_xy) / (E_xx + 1e-5)).

    Args:
      levels: whole numbers 0..255 [h w]. Sums of whole numbers are exact, so that the sign of an
        E_xy of 0, which rounding decides elsewhere, is 0 on every machine.
    """
    ramp = np.arange(1, _RADIUS + 1)
    kernel = np.concatenate([ramp, [_RADIUS + 1], ramp[::-1]])
    smooth = levels.astype(np.float64)
    for axis in (0, 1):
        smooth = ndimage.correlate1d(smooth, kernel, axis, mode="reflect")
    scale = LEVELS * kernel.sum() ** 2  # of `smooth`, beside the map in 0..1
    d_y, d_x = np.gradient(smooth)
    d_xx = np.gradient(d_x, axis=1)
    d_yy, d_xy = np.gradient(d_y)
    slope = d_yy * np.sign(-d_xy) / (d_xx + _TINY * scale)
    return np.mod(np.arctan(slope), np.pi)


def suppress(levels: np.ndarray, direction: np.ndarray | None = None) -> np.ndarray:
    """Non-maximum suppression: keeps pixels that no neighbour across the contour outdoes.

    Neighbours lie one pixel away, on both sides, and are interpolated bilinearly. Within 5 pixels
    of the border what is kept fades out, for it is less certain there.

    Args:
      levels: prediction, uint8 [h w].
      direction: across contours, radians [h w]; None is `orientation(levels)`.

    Returns:
      Strength in 0..1, float64 [h w].

    Raises:
      ValueError: not uint8 [h w], or fewer than 2 pixels on a side.
    """
    if levels.dtype != np.uint8 or levels.ndim != 2 or min(levels.shape) < 2:
        raise ValueError(
            f"A prediction is a map of whole numbers 0..255, uint8 [h w], 2x2 or larger; got "
            f"{levels.dtype} {list(levels.shape)}. Write round(255 * probability)."
        )
    direction = orientation(levels) if direction is None else direction
    strength = levels / float(LEVELS)
    rows, columns = np.indices(levels.shape)
    kept = strength.copy()
    for step in (-1, 1):
        beside = _interpolate(
            strength, rows + step * np.sin(direction), columns + step * np.cos(direction)
        )
        kept[strength * _MARGIN < beside] = 0.0
    height, width = levels.shape
    return kept * _fade(height)[:, None] * _fade(width)


def _interpolate(values: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns values [h w] at points, bilinearly; those outside are moved to the border."""
    height, width = values.shape
    # A thousandth short of the last pixel, so that there is one beyond each point.
    y, x = np.clip(y, 0, height - 1.001), np.clip(x, 0, width - 1.001)
    top, left = y.astype(np.intp), x.astype(np.intp)
    down, right = y - top, x - left
    upper, lower = (
        values[row, left] * (1 - right) + values[row, left + 1] * right for row in (top, top + 1)
    )
    return upper * (1 - down) + lower * down


def _fade(size: int) -> np.ndarray:
    """Returns the weight of each row or column: 0 at the border, 1 from 5 pixels on."""
    pixels = np.arange(size)
    return np.minimum(np.minimum(pixels, pixels[::-1]) / min(_FADE, size // 2), 1.0)


def thin(contour: np.ndarray) -> np.ndarray:
    """Thins a contour, bool [h w], to lines of one pixel, as MATLAB's `bwmorph('thin', inf)` does.

    Both are the first algorithm of Guo and Hall, "Parallel thinning with two-subiteration
    algorithms", CACM 1989; of the golden maps they keep the same pixels.

    Raises:
      RuntimeError: the extra "data", of which scikit-image is a part, is not installed.
    """
    try:
        from skimage import morphology  # with the extra "data" only
    except ImportError as error:
        raise RuntimeError(
            'The boundary benchmark needs scikit-image, of the extra "data": '
            f'pip install -e ".[data]" ({error}).'
        ) from error
    return morphology.thin(contour)


def contour_of_regions(regions: np.ndarray) -> np.ndarray:
    """Returns the pixels whose right, lower or lower right neighbour is of another region.

    The Berkeley benchmark's contour of a segmentation (half a pixel up and left of the true place).

    Args:
      regions: a number for each pixel [h w].

    Returns:
      bool [h w], not thinned.
    """
    contour = np.zeros(regions.shape, bool)
    contour[:, :-1] |= regions[:, :-1] != regions[:, 1:]
    contour[:-1] |= regions[:-1] != regions[1:]
    contour[:-1, :-1] |= regions[:-1, :-1] != regions[1:, 1:]
    return contour
