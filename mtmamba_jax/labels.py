"""Logits and labels on one grid, and what of a label counts: the same for losses and metrics."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtmamba_jax.array_types import Array
from mtmamba_jax.tasks import Task


def resize_logits(logits: Array, size: Sequence[int]) -> Array:
    """Resizes [b h w channels] bilinearly to `size` = (height, width), with half-pixel centres.

    Nothing is smoothed where it gets smaller; nothing is done where it has that size.
    """
    if logits.shape[1:3] == tuple(size):
        return logits
    shape = (logits.shape[0], *size, logits.shape[3])
    return jax.image.resize(logits, shape, method="bilinear", antialias=False)


def valid_pixels(task: Task, label: Array, mask: Array) -> jax.Array:
    """Returns which pixels count, bool [b h w].

    Args:
      task: gives the ignore value; a pixel is ignored where all its label channels hold it.
      label: [b h w label_channels].
      mask: bool [b]; False leaves a whole example out (padding of a last batch).
    """
    return jnp.any(label != task.ignore, axis=-1) & jnp.asarray(mask, bool)[:, None, None]


def check_shapes(task: Task, logits: Array, label: Array) -> None:
    """Checks that logits [b h w channels] and a label [b h w label_channels] lie on one grid.

    Raises:
      ValueError: they do not; the message gives both shapes and what to do.
    """
    for what, array, channels in (
        ("logits", logits, task.channels),
        ("label", label, task.label_channels),
    ):
        if array.ndim != 4 or array.shape[-1] != channels:
            raise ValueError(
                f"Task {task.name!r}: wanted {what} [b h w {channels}], got shape {array.shape}. "
                "Arrays are channels-last."
            )
    if logits.shape[:3] != label.shape[:3]:
        raise ValueError(
            f"Task {task.name!r}: logits {logits.shape} and label {label.shape} differ in batch, "
            f"height or width ({logits.shape[:3]} against {label.shape[:3]}). "
            "Resize the logits to the label's size first."
        )
