"""Losses: per-pixel values for each kind of task, one reduction for all of them, one total.

A loss function knows nothing of ignored pixels or of batches: it returns a value for each pixel.
`reduce_pixels` alone takes the mean over valid pixels, for each image or over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtmamba_jax.array_types import Batch, TaskMaps
from mtmamba_jax.labels import check_shapes, valid_pixels
from mtmamba_jax.messages import check_name
from mtmamba_jax.tasks import Task

EDGE_POSITIVE_WEIGHT = 0.95
"""Weight of contour pixels in `edge_bce`; the others weigh the rest (the official setting)."""

LOG_EPSILON = 1e-8
"""Added to a loss before its logarithm (the official setting)."""

# Squared length under which a normal is shrunk, not normalised. In float32 it leaves a vector of
# length 0.01 or more as it is, and it bounds the gradient at 0 by 1e6.
SQUARED_LENGTH_EPSILON = 1e-12

SCHEMES = ("log", "sum")
# The axes of [b h w] that one loss is a mean over.
REDUCTIONS = {"image": (1, 2), "batch": (0, 1, 2)}

PixelLoss = Callable[[jax.Array, jax.Array, jax.Array, tuple[int, ...]], jax.Array]
"""(logits [b h w channels] float32, label, valid [b h w], axes of one mean) -> values [b h w]."""


def normalise(vectors: jax.Array) -> jax.Array:
    """Scales vectors [... 3] to unit length; a zero vector stays zero, with a finite gradient."""
    squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(squared + SQUARED_LENGTH_EPSILON)


def cross_entropy(logits, label, valid, axes):
    """Cross entropy of classes. A valid label that is no class gives NaN, which stops a run."""
    del axes
    channels = logits.shape[-1]
    classes = jnp.where(valid, label[..., 0], 0)[..., None]
    # A comparison, not a gather: its gradient is elementwise, not a scatter.
    picked = jnp.sum(jnp.where(classes == jnp.arange(channels), logits, 0.0), axis=-1)
    known = (classes[..., 0] >= 0) & (classes[..., 0] < channels)
    return jnp.where(known, jax.nn.logsumexp(logits, axis=-1) - picked, jnp.nan)


def balanced_cross_entropy(logits, label, valid, axes):
    """Two-class cross entropy; each class weighs the share of the other among the valid pixels."""
    positive = valid & (label[..., 0] == 1)
    count = jnp.maximum(jnp.sum(valid, axis=axes, keepdims=True), 1)
    positive_share = jnp.sum(positive, axis=axes, keepdims=True) / count
    weight = jnp.where(positive, 1.0 - positive_share, positive_share)
    return weight * cross_entropy(logits, label, valid, axes)


def edge_bce(logits, label, valid, axes):
    """Binary cross entropy with `EDGE_POSITIVE_WEIGHT` on contour pixels."""
    del valid, axes
    logit = logits[..., 0]
    return jnp.where(
        label[..., 0] == 1,
        EDGE_POSITIVE_WEIGHT * jax.nn.softplus(-logit),
        (1.0 - EDGE_POSITIVE_WEIGHT) * jax.nn.softplus(logit),
    )


def l1(logits, label, valid, axes):
    """Absolute error, in the label's unit."""
    del valid, axes
    return jnp.abs(logits[..., 0] - label[..., 0])


def normals_l1(logits, label, valid, axes):
    """Absolute error summed over the three components, after normalising the prediction."""
    del valid, axes
    return jnp.sum(jnp.abs(normalise(logits) - label), axis=-1)


LOSSES: Mapping[str, PixelLoss] = {
    "cross_entropy": cross_entropy,
    "balanced_cross_entropy": balanced_cross_entropy,
    "edge_bce": edge_bce,
    "l1": l1,
    "normals_l1": normals_l1,
}


def reduce_pixels(
    values: jax.Array, valid: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Takes means over valid pixels: values, valid [b h w] -> means, present [b], or [1] if pooled.

    Where no pixel is valid, present is False, the mean is 0 and so is its gradient.
    """
    count = jnp.sum(valid, axis=axes)
    mean = jnp.sum(jnp.where(valid, values, 0.0), axis=axes) / jnp.maximum(count, 1)
    return mean.reshape(-1), (count > 0).reshape(-1)


class TaskLoss(NamedTuple):
    """A task's loss over a batch; those of a batch's parts may be added or averaged field by field.

    Attributes:
      total: over the images that have a label for the task (one, where they are pooled).
      count: of these images.
    """

    total: jax.Array
    count: jax.Array

    @property
    def mean(self) -> jax.Array:
        """Over these images; 0 where there is none."""
        return jnp.where(self.count > 0, self.total / jnp.where(self.count > 0, self.count, 1), 0)


def multitask_loss(
    tasks: Sequence[Task],
    logits: TaskMaps,
    batch: Batch,
    *,
    weights: Mapping[str, float],
    scheme: str,
    reduction: str,
) -> tuple[jax.Array, dict[str, TaskLoss]]:
    """Returns the total to minimise, a scalar, and each task's loss; all float32.

    With l_t the mean over valid pixels of task t's loss and w_t its weight,
    "sum": total = sum_t w_t * l_t; "log": total = sum_t w_t * log(l_t + 1e-8).
    "batch" takes l_t (and saliency's class weights) over all pixels of the batch. "image" takes
    them, and the logarithm, for each image, and averages the totals over the images: the published
    runs' objective, 8 processes of one image each. An image (or batch) without a label for a task
    adds nothing for that task, nor does it enter the task's loss.

    Args:
      tasks: the tasks to sum over.
      logits: [b h w channels] for each task name, any float dtype, at the label's size.
      batch: a label [b h w label_channels] for each task name, and `mask` bool [b].
      weights: w_t for each task name.
      scheme: "log" or "sum".
      reduction: "image" or "batch".

    Raises:
      ValueError: an unknown scheme, reduction or loss; a task without logits, label or weight;
        shapes that do not fit.
    """
    check_name("scheme", scheme, SCHEMES)
    check_name("reduction", reduction, REDUCTIONS)
    for what, mapping in (("logits", logits), ("batch", batch), ("weights", weights)):
        wanted = [task.name for task in tasks] + (["mask"] if what == "batch" else [])
        missing = [name for name in wanted if name not in mapping]
        if missing:
            raise ValueError(f"{what} lacks {', '.join(missing)}; it holds {', '.join(mapping)}.")

    axes = REDUCTIONS[reduction]
    mask = jnp.asarray(batch["mask"], bool)
    # Padded examples are no images: they do not enlarge the divisor.
    groups = jnp.maximum(jnp.sum(mask), 1) if reduction == "image" else 1
    total = jnp.zeros((), jnp.float32)
    losses = {}
    for task in tasks:
        loss, present = _task_loss(task, logits[task.name], batch[task.name], mask, axes)
        # log(1) = 0 where there is no label: nothing added, and no 1 / 1e-8 in the gradient.
        term = jnp.log(jnp.where(present, loss + LOG_EPSILON, 1.0)) if scheme == "log" else loss
        total += weights[task.name] * jnp.sum(term) / groups
        losses[task.name] = TaskLoss(jnp.sum(loss), jnp.sum(present, dtype=jnp.float32))
    return total, losses


def _task_loss(task, logits, label, mask, axes):
    check_name("loss", task.loss, LOSSES)
    check_shapes(task, logits, label)
    valid = valid_pixels(task, label, mask)
    values = LOSSES[task.loss](jnp.asarray(logits, jnp.float32), jnp.asarray(label), valid, axes)
    return reduce_pixels(values, valid, axes)
