"""Resizes photos for the network, and its logits back to the size of the photo."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mtmamba_jax.tasks.readout import to_value
from mtmamba_jax.tasks.table import Task

_STRIP = 2**20  # logits of a large photo that are in memory at once


def fit(
    photo: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes a photo to the largest size of its aspect ratio within `size` (height, width)."""
    height, width = photo.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(photo, fitted, interpolation=interpolation)


def enlarge(
    task: Task, logits: Float[np.ndarray, "h w channels"], size: tuple[int, ...]
) -> np.ndarray:
    """Resizes logits bilinearly to `size` (height, width) and reads them with `to_value`."""
    return np.concatenate(list(enlarged_strips(task, logits, size)))


def enlarged_strips(
    task: Task, logits: Float[np.ndarray, "h w channels"], size: tuple[int, ...]
) -> Iterator[np.ndarray]:
    """Yields the rows of `enlarge` from top to bottom, a few at a time.

    40 classes of a 12-megapixel photo would need 2 GB at once.
    """
    rows, columns = (_neighbours(old, new) for old, new in zip(logits.shape, size, strict=False))
    count = max(1, _STRIP // (size[1] * logits.shape[2]))
    for start in range(0, size[0], count):
        strip = _blend(logits, [each[start : start + count] for each in rows], axis=0)
        yield np.asarray(to_value(task, _blend(strip, columns, axis=1)))


def _blend(logits: np.ndarray, neighbours: Sequence[np.ndarray], axis: int) -> np.ndarray:
    low, high, weight = neighbours
    weight = np.expand_dims(weight, (1 - axis, 2))
    return logits.take(low, axis) * (1 - weight) + logits.take(high, axis) * weight


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, for each new pixel, the old ones around its centre and the weight of the second."""
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(position).astype(int)
    return low, np.minimum(low + 1, old - 1), (position - low).astype(np.float32)
