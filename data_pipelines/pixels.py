"""What transforms do to the pixels of one image or label."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

Window = tuple[slice, slice]
"""The rows and the columns of a part of an image."""

# Never mixes a label with its neighbour. It has the half-pixel-centre rule of cv2.INTER_LINEAR, so
# labels stay on the image's pixels (INTER_NEAREST samples at corners, up to half a pixel away).
_NEAREST = cv2.INTER_NEAREST_EXACT

_STRIP = 32  # rows; of three float32 channels at NYUDv2's size 220 KB


def zoom_image(image: np.ndarray, zoomed: tuple[int, int], window: Window) -> np.ndarray:
    """Returns a window of an image [h w c] that is zoomed linearly to height and width `zoomed`."""
    height, width = (new / old for new, old in zip(zoomed, image.shape, strict=False))
    # Nothing is computed below or to the right of the window: one more pixel is blended into it.
    bottom = math.ceil(window[0].stop / height) + 1
    right = math.ceil(window[1].stop / width) + 1
    # By factors, not to a size, so that pixels lie where they do in the whole zoomed image.
    part = cv2.resize(image[:bottom, :right], None, fx=width, fy=height)
    return part[window]


def zoom_label(label: np.ndarray, zoomed: tuple[int, int], window: Window) -> np.ndarray:
    """Returns a window of a label [h w c] that is zoomed to the nearest pixel; not a view of it.

    Args:
      label: any dtype.
      zoomed: height and width of the whole.
      window: of the zoomed label.
    """
    return label_windows(label, zoomed, [part.stop - part.start for part in window])(window)


def label_windows(
    label: np.ndarray, zoomed: tuple[int, int], size: Sequence[int]
) -> Callable[[Window], np.ndarray]:
    """Returns a function that gives `zoom_label` of any window of one size.

    What the windows have in common is computed once.
    """
    height, width, channels = label.shape
    # OpenCV makes two pixels in the time in which numpy picks one.
    if math.prod(zoomed) <= 2 * math.prod(size):
        whole = cv2.resize(label, zoomed[::-1], interpolation=_NEAREST)
        return whole.reshape(*zoomed, channels).__getitem__
    every_row, every_column = _nearest(height, zoomed[0]), _nearest(width, zoomed[1])

    def pick(window):
        rows, columns = every_row[window[0]], every_column[window[1]]
        # Pixels first, then whole rows, which are quickly repeated.
        part = label[rows[0] : rows[-1] + 1].take(columns, axis=1)
        return part.take(rows - rows[0], axis=0)

    return pick


def _nearest(old: int, new: int) -> np.ndarray:
    """Returns which of `old` pixels in a line OpenCV takes for each of `new` ones."""
    line = np.arange(old, dtype=np.int32)[None]
    return cv2.resize(line, (new, 1), interpolation=_NEAREST)[0].astype(np.intp)


def multiply(label: np.ndarray, factor: float, ignore: float) -> None:
    """Multiplies, in place, all values but `ignore`."""
    for strip in _strips(label):
        values = strip.reshape(len(strip), -1)
        _copy_where(values != ignore, values * np.float32(factor), values)


def negate_x(label: np.ndarray, ignore: float) -> None:
    """Negates, in place, the first channel of a label [h w c] where it is not `ignore`."""
    for strip in _strips(label):
        x = cv2.extractChannel(strip, 0)
        _copy_where(x != ignore, -x, x)
        cv2.insertChannel(x, strip, 0)


def _copy_where(mask: np.ndarray, source: np.ndarray, target: np.ndarray) -> None:
    # np.copyto takes 3 times as long, and 9 times where ignored pixels lie here and there.
    cv2.copyTo(source, mask.view(np.uint8), target)


def _strips(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields an array's rows, as many at a time as stay in the cache from step to step."""
    for first in range(0, len(array), _STRIP):
        yield array[first : first + _STRIP]


def frame(array: np.ndarray, offset: Sequence[int], size: Sequence[int], fill: float) -> np.ndarray:
    """Fills what lies around the part of `array` at `offset` of `size`, and returns that part."""
    (top, left), (bottom, right) = offset, (a + n for a, n in zip(offset, size, strict=False))
    array[:top] = fill
    array[bottom:] = fill
    array[top:bottom, :left] = fill
    array[top:bottom, right:] = fill
    return array[top:bottom, left:right]
