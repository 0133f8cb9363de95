"""Logits as quantities in the task's unit: class numbers, metres, unit vectors, probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType

import numpy as np

from mtmamba_jax.array_types import Array
from mtmamba_jax.tasks import Task


def _softmax_last(logits: Array, xp: ModuleType) -> Array:
    """The last class's probability of [... 2] logits."""
    return 1.0 / (1.0 + xp.exp(logits[..., 0] - logits[..., 1]))


def _unit_length(logits: Array, xp: ModuleType) -> Array:
    return logits / xp.maximum(xp.linalg.norm(logits, axis=-1, keepdims=True), 1e-6)


VALUES: Mapping[str, Callable[[Array, ModuleType], Array]] = {
    "classes": lambda logits, xp: logits.argmax(-1).astype(np.uint8),
    "depth": lambda logits, xp: logits[..., 0],
    "normals": _unit_length,
    "probability": lambda logits, xp: 1.0 / (1.0 + xp.exp(-logits[..., 0])),
    "saliency": _softmax_last,
}
"""Logits [... channels], and numpy or jax.numpy -> the quantity, for each `Task.display`."""


def to_value(task: Task, logits: Array, xp: ModuleType = np) -> Array:
    """Returns what a prediction says, in the task's unit.

    Args:
      task: chooses the reading.
      logits: float [h w channels]; axes before these stay.
      xp: numpy, or jax.numpy inside a program.

    Returns:
      classes: uint8 [h w]; depth: float32 [h w]; normals: float32 [h w 3], unit length;
      edge and saliency: float32 [h w], a probability.
    """
    value = VALUES[task.display](xp.asarray(logits, np.float32), xp)
    return value if value.dtype == np.uint8 else value.astype(np.float32)


def label_value(task: Task, label: Array) -> np.ndarray:
    """Returns a label [h w label_channels] in the form of `to_value`; ignored pixels stay 255."""
    label = np.asarray(label)
    return label if label.shape[-1] > 1 else label[..., 0]


def to_levels(probability: np.ndarray) -> np.ndarray:
    """Returns round(255 * probability), uint8."""
    return np.rint(255.0 * np.clip(probability, 0.0, 1.0)).astype(np.uint8)


def normal_levels(normals: np.ndarray) -> np.ndarray:
    """Returns round(255 * (normal + 1) / 2), uint8."""
    return to_levels((normals + 1.0) / 2.0)


def is_ignored(task: Task, value: np.ndarray) -> np.ndarray:
    """Returns which pixels of a label's value [h w] or [h w 3] are ignored: bool [h w]."""
    per_pixel = value if value.ndim == 3 else value[..., None]
    return (per_pixel == task.ignore).all(-1)
