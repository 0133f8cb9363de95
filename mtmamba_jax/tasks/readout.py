"""Predictions and labels as quantities: class IDs, metres, unit vectors and probabilities."""

from collections.abc import Callable, Mapping
from types import ModuleType

import jax
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from mtmamba_jax.array_types import Array
from mtmamba_jax.tasks.table import IGNORE, Task

# Added to a vector's squared length. In float32 it does not change vectors of length 0.01 or more,
# and it bounds the gradient at 0 by 1e6.
_SQUARED_LENGTH_EPSILON = 1e-12


def unit_vectors(
    vectors: Float[Array, "*shape 3"], xp: ModuleType, shortest: float = 0.0
) -> Float[Array, "*shape 3"]:
    """Scales vectors to unit length; a zero vector stays zero.

    Args:
      vectors: Vectors of any length; its square need not fit into float32.
      xp: `numpy` or `jax.numpy`.
      shortest: Vectors much shorter than 1e-6 times this stay shorter than 1, which bounds the
        gradient at 0 by 1e6 / `shortest`. With 0 it is not bounded.
    """
    # The scale does not change the direction. JAX's gradient of a maximum is NaN where a compiler
    # computes the operand twice and rounds differently.
    fixed = vectors if xp is np else jax.lax.stop_gradient(vectors)
    largest = xp.max(xp.abs(fixed), axis=-1, keepdims=True)
    # Divides twice, because compilers multiply by reciprocals: that of 3e38 would be 0.
    root = xp.sqrt(xp.maximum(xp.where(largest > 0, largest, 1.0), shortest))
    scaled = vectors / root / root
    squared = xp.sum(xp.square(scaled), axis=-1, keepdims=True)
    return scaled * (1.0 / xp.sqrt(squared + _SQUARED_LENGTH_EPSILON))


def _class_ids(logits: Array, xp: ModuleType) -> Array:
    known = xp.isfinite(logits).all(-1)
    return xp.where(known, logits.argmax(-1), IGNORE).astype(np.uint8)


VALUES: Mapping[str, Callable[[Array, ModuleType], Array]] = {
    "classes": _class_ids,
    "depth": lambda logits, xp: logits[..., 0],
    "normals": unit_vectors,
    "probability": lambda logits, xp: 1.0 / (1.0 + xp.exp(-logits[..., 0])),
    "saliency": lambda logits, xp: 1.0 / (1.0 + xp.exp(logits[..., 0] - logits[..., 1])),
}
"""Maps logits [... channels] and numpy or jax.numpy to the quantity, for each `Task.quantity`."""


def to_value(
    task: Task, logits: Float[Array, "*lead h w channels"], xp: ModuleType = np
) -> Shaped[Array, "..."]:
    """Returns the quantity that logits predict, in the task's unit.

    `xp` is numpy, or jax.numpy inside a program.

    Returns:
      Class IDs, uint8 [h w], `IGNORE` where logits are NaN or infinite; depth, float32 [h w];
      normals of unit length, float32 [h w 3]; the probability of an edge or of saliency, float32
      [h w].
    """
    value = VALUES[task.quantity](xp.asarray(logits, np.float32), xp)
    return value if value.dtype == np.uint8 else value.astype(np.float32)


def label_value(
    task: Task, label: Shaped[Array, "h w channels"]
) -> Shaped[np.ndarray, "h w *channels"]:
    """Returns a label in the form of `to_value`; ignored pixels keep the ignore value."""
    label = np.asarray(label)
    return label if label.shape[-1] > 1 else label[..., 0]


def to_levels(probability: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Returns round(255 * probability)."""
    return np.rint(255.0 * np.clip(probability, 0.0, 1.0)).astype(np.uint8)


def normal_levels(normals: Float[np.ndarray, "*shape 3"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Returns round(255 * (normal + 1) / 2)."""
    return to_levels((normals + 1.0) / 2.0)


def is_ignored(task: Task, value: Shaped[np.ndarray, "h w *channels"]) -> Bool[np.ndarray, "h w"]:
    """Returns which pixels of a label's value (`label_value`) are ignored."""
    per_pixel = value if value.ndim == 3 else value[..., None]
    return (per_pixel == task.ignore).all(-1)


def angle(
    a: Float[Array, "*shape 3"], b: Float[Array, "*shape 3"], xp: ModuleType = np
) -> Float[Array, "*shape"]:
    """Returns the angle between unit vectors, in degrees; `xp` is as in `to_value`.

    2 atan2(|a - b|, |a + b|), which is exact at 0 and 180 degrees, unlike arccos.
    """
    difference = xp.linalg.norm(a - b, axis=-1)
    return xp.degrees(2.0 * xp.arctan2(difference, xp.linalg.norm(a + b, axis=-1)))
