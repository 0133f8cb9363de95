"""Losses of the tasks and their total, the training objective.

A loss function returns a value for each pixel; `reduce_pixels` alone takes the mean over valid
pixels, for each image or over the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from mtmamba_jax.array_types import Batch, TaskMaps
from mtmamba_jax.messages import check_name
from mtmamba_jax.tasks.labels import check_shapes, valid_pixels
from mtmamba_jax.tasks.readout import unit_vectors
from mtmamba_jax.tasks.table import Task

EDGE_POSITIVE_WEIGHT = 0.95
"""Weight of contour pixels in `edge_bce`; other pixels weigh 1 minus it (the official setting)."""

LOG_EPSILON = 1e-8
"""Added to a loss before its logarithm (the official setting)."""

SCHEMES = ("log", "sum")
REDUCTIONS = {"image": (1, 2), "batch": (0, 1, 2)}
"""Axes of [b h w] that a loss is averaged over."""

PixelLoss = Callable[[jax.Array, jax.Array, jax.Array, tuple[int, ...]], jax.Array]
"""Maps float32 logits [b h w channels], label, valid pixels [b h w] and the axes of the mean to
the values [b h w]."""


def cross_entropy(logits, label, valid, axes):
    """Cross entropy of classes; NaN, which stops training, for a valid label that is no class."""
    del axes
    channels = logits.shape[-1]
    classes = jnp.where(valid, label[..., 0], 0)[..., None]
    # A comparison, not a gather: its gradient is elementwise, not a scatter.
    picked = jnp.sum(jnp.where(classes == jnp.arange(channels), logits, 0.0), axis=-1)
    known = (classes[..., 0] >= 0) & (classes[..., 0] < channels)
    return jnp.where(known, jax.nn.logsumexp(logits, axis=-1) - picked, jnp.nan)


def balanced_cross_entropy(logits, label, valid, axes):
    """Two-class cross entropy; the weight of a class is the other's share of the valid pixels."""
    positive = valid & (label[..., 0] == 1)
    # One of them float32: two integers would make a float64 with jax_enable_x64.
    count = jnp.maximum(jnp.sum(valid, axis=axes, keepdims=True), 1).astype(jnp.float32)
    positive_share = jnp.sum(positive, axis=axes, keepdims=True) / count
    weight = jnp.where(positive, 1.0 - positive_share, positive_share)
    return weight * cross_entropy(logits, label, valid, axes)


def edge_bce(logits, label, valid, axes):
    """Binary cross entropy, weighted by `EDGE_POSITIVE_WEIGHT` on contour pixels."""
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
    """Absolute error of the normalised prediction, summed over the three components."""
    del valid, axes
    return jnp.sum(jnp.abs(unit_vectors(logits, jnp, shortest=1.0) - label), axis=-1)


LOSSES: Mapping[str, PixelLoss] = {
    "cross_entropy": cross_entropy,
    "balanced_cross_entropy": balanced_cross_entropy,
    "edge_bce": edge_bce,
    "l1": l1,
    "normals_l1": normals_l1,
}
"""Loss functions by `Task.loss`."""


def reduce_pixels(
    values: Float[jax.Array, "b h w"], valid: Bool[jax.Array, "b h w"], axes: tuple[int, ...]
) -> tuple[Float[jax.Array, " n"], Bool[jax.Array, " n"]]:
    """Returns means over valid pixels and whether there were any; n is b, or 1 over the batch.

    Where no pixel is valid, the mean is 0 and so is its gradient.
    """
    count = jnp.sum(valid, axis=axes)
    mean = jnp.sum(jnp.where(valid, values, 0.0), axis=axes) / jnp.maximum(count, 1)
    return mean.reshape(-1), (count > 0).reshape(-1)


class TaskLoss(NamedTuple):
    """A task's loss over a batch; losses of microbatches may be averaged field by field.

    Attributes:
      total: Sum of the losses of the images with a label for the task, or the loss of the whole
        batch with reduction "batch".
      count: Number of losses in the sum.
    """

    total: jax.Array
    count: jax.Array

    @property
    def mean(self) -> jax.Array:
        """Mean loss; NaN if there is none."""
        return self.total / self.count


def multitask_loss(
    tasks: Sequence[Task],
    logits: TaskMaps,
    batch: Batch,
    *,
    weights: Mapping[str, float],
    scheme: str,
    reduction: str,
) -> tuple[jax.Array, dict[str, TaskLoss]]:
    """Returns the total to minimise, a scalar, and the loss of each task by name; all float32.

    Let l_t be the mean of task t's loss over valid pixels and w_t its weight. The total is
    sum_t w_t * l_t with scheme "sum", and sum_t w_t * log(l_t + 1e-8) with "log".

    With reduction "batch", l_t (and the class weights of saliency) are taken over all pixels of the
    batch. With "image", they and the logarithm are taken for each image, and the totals are
    averaged over the images: the objective of the published runs, with 8 processes of one image
    each. An image (or batch) without a label for a task does not count for that task.

    Args:
      tasks: Tasks to sum over.
      logits: Logits [b h w channels] by task name, of any float dtype, at the label's size.
      batch: Labels [b h w label_channels] by task name, and `mask`, bool [b].
      weights: w_t by task name.
      scheme: "log" or "sum".
      reduction: "image" or "batch".

    Raises:
      ValueError: If a scheme, reduction or loss is unknown, if a task has no logits, label or
        weight, or if shapes do not fit.
    """
    check_name("scheme", scheme, SCHEMES)
    check_name("reduction", reduction, REDUCTIONS)
    for what, mapping in (("logits", logits), ("batch", batch), ("weights", weights)):
        wanted = [task.name for task in tasks] + (["mask"] if what == "batch" else [])
        missing = [name for name in wanted if name not in mapping]
        if missing:
            raise ValueError(
                f"Missing in {what}: {', '.join(missing)}. Present: {', '.join(mapping)}."
            )

    axes = REDUCTIONS[reduction]
    mask = jnp.asarray(batch["mask"], bool)
    # Padded examples do not count as images of the mean.
    groups = jnp.maximum(jnp.sum(mask), 1) if reduction == "image" else 1
    total = jnp.zeros((), jnp.float32)
    losses = {}
    for task in tasks:
        check_name("loss", task.loss, LOSSES)
        check_shapes(task, logits[task.name], batch[task.name])
        valid = valid_pixels(task, batch[task.name], mask)
        raw, label = jnp.asarray(logits[task.name], jnp.float32), jnp.asarray(batch[task.name])
        loss, present = reduce_pixels(LOSSES[task.loss](raw, label, valid, axes), valid, axes)
        # log(1) = 0 where there is no label, so that no 1 / 1e-8 enters the gradient.
        term = jnp.log(jnp.where(present, loss + LOG_EPSILON, 1.0)) if scheme == "log" else loss
        total += weights[task.name] * jnp.sum(term) / groups
        losses[task.name] = TaskLoss(jnp.sum(loss), jnp.sum(present, dtype=jnp.float32))
    return total, losses
