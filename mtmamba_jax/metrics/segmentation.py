"""mIoU: mean over classes of intersection over union, counts pooled over the set."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from mtmamba_jax.metrics.base import ConstantBaseline, Metric, Scores
from mtmamba_jax.tasks import Task


class Segmentation(Metric):
    """`mIoU`, percent. A class with no pixel, predicted or labelled, has IoU 0 (as published)."""

    def __init__(self, task: Task):
        shape = (task.channels,)
        super().__init__(
            task,
            {
                "true_positives": (shape, np.int64),
                "predicted": (shape, np.int64),
                "labelled": (shape, np.int64),
            },
        )

    def _measure(self, logits, label, valid):
        predicted, labelled = jnp.argmax(logits, axis=-1), label[..., 0]
        return {
            "true_positives": _histogram(labelled, valid & (predicted == labelled), self.task),
            "predicted": _histogram(predicted, valid, self.task),
            "labelled": _histogram(labelled, valid, self.task),
        }

    def compute(self, counts) -> Scores:
        """Returns {"mIoU": percent}."""
        if not np.any(counts["labelled"]):
            return {"mIoU": float("nan")}
        return {"mIoU": 100.0 * float(np.mean(_intersection_over_union(counts)))}

    def per_class(self, counts) -> Scores:
        """Returns the IoU of each class by its name, percent."""
        values = 100.0 * _intersection_over_union(counts)
        return dict(zip(self.task.class_names, values.tolist(), strict=True))


class SegmentationConstant(ConstantBaseline):
    """The commonest class everywhere: IoU is its share for that class and 0 for the others."""

    def __init__(self, task: Task):
        super().__init__(task, {"labelled": ((task.channels,), np.int64)})

    def _measure(self, label, valid):
        return {"labelled": _histogram(label[..., 0], valid, self.task)}

    def logits(self, counts):
        """Returns 1 for the commonest class, 0 for the others."""
        return np.eye(self.task.channels)[np.argmax(counts["labelled"])]

    def compute(self, counts) -> Scores:
        """Returns {"mIoU": percent}."""
        labelled = np.asarray(counts["labelled"])
        chosen = self.logits(counts).astype(np.int64)
        return Segmentation(self.task).compute(
            {
                "true_positives": chosen * labelled,
                "predicted": chosen * labelled.sum(),
                "labelled": labelled,
            }
        )


def _histogram(classes, where, task):
    # An index past the end is dropped.
    index = jnp.where(where, classes, task.channels).ravel()
    return jnp.zeros(task.channels, jnp.int32).at[index].add(1, mode="drop")


def _intersection_over_union(counts) -> np.ndarray:
    both = np.asarray(counts["true_positives"], np.float64)
    union = np.asarray(counts["predicted"]) + np.asarray(counts["labelled"]) - both
    return both / np.maximum(union, 1.0)
