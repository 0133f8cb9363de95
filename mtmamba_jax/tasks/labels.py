"""Rules that losses and metrics share: logits on the labels' grid, and which pixels count."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Shaped

from mtmamba_jax.array_types import Array
from mtmamba_jax.tasks.table import Task


def resize_logits(
    logits: Float[jax.Array, "b h w channels"], size: Sequence[int]
) -> Float[jax.Array, "b height width channels"]:
    """Resizes logits bilinearly to `size` = (height, width), with half-pixel centres.

    Downsizing does not antialias. Logits of that size are returned as they are.
    """
    if logits.shape[1:3] == tuple(size):
        return logits
    shape = (logits.shape[0], *size, logits.shape[3])
    return jax.image.resize(logits, shape, method="bilinear", antialias=False)


def valid_pixels(
    task: Task, label: Shaped[Array, "b h w channels"], mask: Bool[Array, " b"]
) -> Bool[jax.Array, "b h w"]:
    """Returns which pixels losses and metrics count.

    Args:
      task: Task with the ignore value; a pixel is ignored where all its label channels hold it.
      label: Label of the task.
      mask: False for examples to leave out: the padding of a last batch.
    """
    return jnp.any(label != task.ignore, axis=-1) & jnp.asarray(mask, bool)[:, None, None]


def check_shapes(
    task: Task,
    logits: Float[Array, "b h w channels"],
    label: Shaped[Array, "b h w label_channels"],
) -> None:
    """Checks that logits and a label have the task's channels and lie on one grid.

    Raises:
      ValueError: If they do not; the message gives both shapes and the remedy.
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
