"""Metric of segmentation: intersection over union, from the confusion matrix of the test set."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from mtmamba_jax.metrics import base
from mtmamba_jax.tasks.table import Task

PRESENT = "mIoU_present"
"""Name of the score that leaves out absent classes."""


class Segmentation(base.Metric):
    """`mIoU` and `mIoU_present` in percent.

    A class without a predicted or labelled pixel has IoU 0 in mIoU, as published, and is left out
    of mIoU_present, which differs on small test sets.

    The sum is `confusion`, pixels by [labelled, predicted] class. Labels that are no class are not
    counted.
    """

    def __init__(self, task: Task):
        confusion = ((task.channels, task.channels), np.int64)
        super().__init__(task, {"confusion": confusion}, dict.fromkeys(("mIoU", PRESENT), "%"))

    def _measure(self, logits, label, valid):
        channels, labelled = self.task.channels, label[..., 0]
        known = valid & (labelled >= 0) & (labelled < channels)
        cells = labelled * channels + jnp.argmax(logits, axis=-1)
        confusion = base.histogram(cells, known, channels**2)
        return {"confusion": confusion.reshape(channels, channels)}

    def _compute(self, sums) -> base.TaskScores:
        confusion = np.asarray(sums["confusion"])
        present = present_classes(confusion)
        among_present = confusion[np.ix_(present, present)]
        return {"mIoU": _mean_iou(confusion), PRESENT: _mean_iou(among_present)}

    def per_class(self, sums) -> base.TaskScores:
        """Returns the IoU of each class in percent, by class name; NaN as in `compute`."""
        values = 100.0 * _intersection_over_union(np.asarray(sums["confusion"]))
        if sums.get(base.NONFINITE, 0):
            values = np.full_like(values, np.nan)
        return dict(zip(self.task.class_names, values.tolist(), strict=True))


def present_classes(confusion: Int[np.ndarray, "c c"]) -> Bool[np.ndarray, " c"]:
    """Returns which classes have a labelled or predicted pixel."""
    return confusion.sum(0) + confusion.sum(1) > 0


class SegmentationConstant(base.ConstantBaseline):
    """The most common class: its IoU is its fraction of the pixels, and the others' IoU is 0."""

    def __init__(self, task: Task):
        super().__init__(task, {"labelled": ((task.channels,), np.int64)})

    def _measure(self, label, valid):
        return {"labelled": base.histogram(label[..., 0], valid, self.task.channels)}

    def compute(self, sums) -> base.TaskScores:
        """Returns mIoU in percent."""
        labelled = np.asarray(sums["labelled"])
        predicted = np.arange(labelled.size) == np.argmax(labelled)
        return {"mIoU": _mean_iou(np.outer(labelled, predicted))}


def _mean_iou(confusion: np.ndarray) -> float:
    """Returns mIoU in percent; NaN if no pixel was counted."""
    if not np.any(confusion):
        return float("nan")
    return 100.0 * float(np.mean(_intersection_over_union(confusion)))


def _intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    both = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - both
    return both / np.maximum(union, 1.0)
