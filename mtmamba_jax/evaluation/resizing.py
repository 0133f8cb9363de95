"""Resizes photos for the network, and its logits back to the size of the photo."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mtmamba_jax.tasks.readout import to_value
from mtmamba_jax.tasks.table import Task

_STRIP = 256  # rows of a large photo whose logits are in memory at once


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
    """Resizes logits bilinearly to `size` (height, width) and reads them with `to_value`.

    This happens in strips: 40 classes of a 12-megapixel photo would need 2 GB at once.
    """
    low, high, weight = _neighbours(logits.shape[1], size[1])
    wide = logits[:, low] * (1 - weight)[:, None] + logits[:, high] * weight[:, None]
    low, high, weight = _neighbours(logits.shape[0], size[0])
    weight = weight[:, None, None]
    strips = []
    for start in range(0, size[0], _STRIP):
        rows = slice(start, start + _STRIP)
        strip = wide[low[rows]] * (1 - weight[rows]) + wide[high[rows]] * weight[rows]
        strips.append(to_value(task, strip))
    return np.concatenate(strips)


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, for each new pixel, the old ones around its centre and the weight of the second."""
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(position).astype(int)
    return low, np.minimum(low + 1, old - 1), (position - low).astype(np.float32)
