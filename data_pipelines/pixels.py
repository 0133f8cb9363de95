"""Fast pixel operations on one image or label, for the transforms."""

import math
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Float, Num, Shaped, UInt8

Window = tuple[slice, slice]
"""Rows and columns of a part of an image."""

# Never mixes neighbouring labels. It samples at half-pixel centres as cv2.INTER_LINEAR does, so
# labels stay aligned with the image (INTER_NEAREST samples at corners, up to half a pixel away).
_NEAREST = cv2.INTER_NEAREST_EXACT

_STRIP = 32  # rows; 220 KB for three float32 channels at NYUDv2's size


def zoom_image(
    image: UInt8[np.ndarray, "h w 3"], zoomed: tuple[int, int], window: Window
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns a window of an image zoomed to height and width `zoomed`, bilinearly."""
    scale_y, scale_x = (new / old for new, old in zip(zoomed, image.shape[:2], strict=True))
    # Nothing below or to the right of the window is computed, except the one pixel blended into it.
    bottom = math.ceil(window[0].stop / scale_y) + 1
    right = math.ceil(window[1].stop / scale_x) + 1
    # Factors instead of a size keep the pixels where they are in the whole zoomed image.
    part = cv2.resize(image[:bottom, :right], None, fx=scale_x, fy=scale_y)
    return part[window]


def zoom_label(
    label: Shaped[np.ndarray, "h w c"], zoomed: tuple[int, int], window: Window
) -> Shaped[np.ndarray, "h2 w2 c"]:
    """Returns a window, as a new array, of a label zoomed to `zoomed`, without interpolation."""
    return label_windows(label, zoomed, [part.stop - part.start for part in window])(window)


def label_windows(
    label: Shaped[np.ndarray, "h w c"], zoomed: tuple[int, int], size: Sequence[int]
) -> Callable[[Window], np.ndarray]:
    """Returns a function from a window to `zoom_label(label, zoomed, window)`.

    What windows of height and width `size` have in common is computed once.
    """
    height, width, channels = label.shape
    # OpenCV computes two pixels in the time in which NumPy picks one.
    if math.prod(zoomed) <= 2 * math.prod(size):
        whole = cv2.resize(label, zoomed[::-1], interpolation=_NEAREST)
        return whole.reshape(*zoomed, channels).__getitem__
    every_row, every_column = _nearest(height, zoomed[0]), _nearest(width, zoomed[1])

    def pick(window):
        rows, columns = every_row[window[0]], every_column[window[1]]
        # Columns first, then whole rows, which are fast to repeat.
        part = label[rows[0] : rows[-1] + 1].take(columns, axis=1)
        return part.take(rows - rows[0], axis=0)

    return pick


def _nearest(old: int, new: int) -> np.ndarray:
    """Returns which of `old` pixels in a row OpenCV samples for each of `new` pixels."""
    line = np.arange(old, dtype=np.int32)[None]
    return cv2.resize(line, (new, 1), interpolation=_NEAREST)[0].astype(np.intp)


def multiply(label: Float[np.ndarray, "h w c"], factor: float, ignore: float) -> None:
    """Multiplies all values except `ignore`, in place."""
    for strip in _strips(label):
        values = strip.reshape(len(strip), -1)
        _copy_where(values != ignore, values * np.float32(factor), values)


def negate_x(label: Float[np.ndarray, "h w c"], ignore: float) -> None:
    """Negates the first channel where it is not `ignore`, in place."""
    for strip in _strips(label):
        x = cv2.extractChannel(strip, 0)
        _copy_where(x != ignore, -x, x)
        cv2.insertChannel(x, strip, 0)


def _copy_where(mask: np.ndarray, source: np.ndarray, target: np.ndarray) -> None:
    # np.copyto takes 3 times as long, and 9 times if ignored pixels are scattered.
    cv2.copyTo(source, mask.view(np.uint8), target)


def _strips(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields strips of an array that are small enough to stay in the cache between operations."""
    for first in range(0, len(array), _STRIP):
        yield array[first : first + _STRIP]


def fill_border(
    array: Num[np.ndarray, "h w c"], offset: Sequence[int], size: Sequence[int], fill: float
) -> Num[np.ndarray, "h2 w2 c"]:
    """Fills, in place, the border around the part of `size` = (height, width) at `offset`.

    Returns a view of that part.
    """
    (top, left), (bottom, right) = offset, (a + n for a, n in zip(offset, size, strict=True))
    array[:top] = fill
    array[bottom:] = fill
    array[top:bottom, :left] = fill
    array[top:bottom, right:] = fill
    return array[top:bottom, left:right]
