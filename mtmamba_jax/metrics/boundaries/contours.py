"""Prepares maps for contour matching: non-maximum suppression, thinning, contours of regions."""

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from scipy import ndimage

LEVELS = 255
"""Predictions have 8 bits: a probability is level / 255."""

_RADIUS = 4  # pixels, of the triangle filter applied before taking gradients
_FADE = 5  # pixels at the border over which contours fade in
_MARGIN = 1.01  # a neighbour must be this much stronger to suppress a pixel
_TINY = 1e-5  # keeps the slope finite


def orientation(levels: Integer[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Returns the direction across contours, in radians in [0, pi).

    From second derivatives of the smoothed map E, with x to the right and y down:
    atan(E_yy * sign(-E_xy) / (E_xx + 1e-5)) (Dollar, Zitnick, "Fast edge detection using structured
    forests", PAMI 2015).

    Args:
      levels: Integers 0..255. Sums of integers are exact, so an E_xy of 0 has sign 0 on every
        machine; with floating point, rounding would decide it.
    """
    ramp = np.arange(1, _RADIUS + 1)
    kernel = np.concatenate([ramp, [_RADIUS + 1], ramp[::-1]])
    smooth = levels.astype(np.float64)
    for axis in (0, 1):
        smooth = ndimage.correlate1d(smooth, kernel, axis, mode="reflect")
    scale = LEVELS * kernel.sum() ** 2  # of `smooth`, relative to a map in 0..1
    d_y, d_x = np.gradient(smooth)
    d_xx = np.gradient(d_x, axis=1)
    d_yy, d_xy = np.gradient(d_y)
    slope = d_yy * np.sign(-d_xy) / (d_xx + _TINY * scale)
    return np.mod(np.arctan(slope), np.pi)


def suppress(levels: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Non-maximum suppression; returns the strength of contours in 0..1, float64.

    Keeps pixels that are as strong as their two neighbours, which lie one pixel away across the
    contour and are interpolated bilinearly. Within 5 pixels of the border the result fades out,
    because contours are less certain there.

    Args:
      levels: Predicted probability times 255.

    Raises:
      ValueError: If `levels` is not uint8 [h w] or has fewer than 2 pixels on a side.
    """
    if levels.dtype != np.uint8 or levels.ndim != 2 or min(levels.shape) < 2:
        raise ValueError(
            f"A prediction must be a map of integers 0..255, uint8 [h w], 2x2 or larger; got "
            f"{levels.dtype} {list(levels.shape)}. Write round(255 * probability)."
        )
    return suppress_across(levels, orientation(levels))


def suppress_across(
    levels: UInt8[np.ndarray, "h w"], direction: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """Returns `suppress` with a given direction across contours, in radians."""
    strength = levels / float(LEVELS)
    rows, columns = np.indices(levels.shape)
    kept = strength.copy()
    for step in (-1, 1):
        y, x = rows + step * np.sin(direction), columns + step * np.cos(direction)
        neighbour = _interpolate(strength, y, x)
        kept[strength * _MARGIN < neighbour] = 0.0
    height, width = levels.shape
    return kept * _fade(height)[:, None] * _fade(width)


def _interpolate(values: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Interpolates values [h w] bilinearly at points, which are clipped to the map."""
    height, width = values.shape
    # A thousandth short of the last pixel, so that every point has a pixel beyond it.
    y, x = np.clip(y, 0, height - 1.001), np.clip(x, 0, width - 1.001)
    top, left = y.astype(np.intp), x.astype(np.intp)
    down, right = y - top, x - left
    upper, lower = (
        values[row, left] * (1 - right) + values[row, left + 1] * right for row in (top, top + 1)
    )
    return upper * (1 - down) + lower * down


def _fade(size: int) -> np.ndarray:
    """Returns a weight for each row or column: 0 at the border, 1 from 5 pixels on."""
    pixels = np.arange(size)
    return np.minimum(np.minimum(pixels, pixels[::-1]) / min(_FADE, size // 2), 1.0)


def thin(contour: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Thins a contour to lines one pixel wide, like MATLAB's `bwmorph('thin', inf)`.

    Both use the first algorithm of Guo and Hall, "Parallel thinning with two-subiteration
    algorithms", CACM 1989, and keep the same pixels of the reference contours in tests/golden.

    Raises:
      RuntimeError: If the extra "data", which includes scikit-image, is not installed.
    """
    try:
        from skimage import morphology  # with the extra "data" only
    except ImportError as error:
        raise RuntimeError(
            'The boundary benchmark needs scikit-image, from the extra "data": '
            f'pip install -e ".[data]" ({error}).'
        ) from error
    return morphology.thin(contour)


def contour_of_regions(regions: Integer[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Returns the pixels whose right, lower or lower right neighbour has another region ID.

    This is how the Berkeley benchmark turns a segmentation into a contour, half a pixel up and left
    of the true border. The contour is not thinned.
    """
    contour = np.zeros(regions.shape, bool)
    contour[:, :-1] |= regions[:, :-1] != regions[:, 1:]
    contour[:-1] |= regions[:-1] != regions[1:]
    contour[:-1, :-1] |= regions[:-1, :-1] != regions[1:, 1:]
    return contour
