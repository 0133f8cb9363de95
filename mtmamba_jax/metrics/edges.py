"""Edges by the pixel: the best F1 over 99 thresholds, counts pooled over the set.

A contour one pixel off counts as wrong here; the boundary protocol's odsF, which matches contours
within a distance, is another score (`mtmamba_jax.metrics.boundaries`).
"""

from __future__ import annotations

import jax
import numpy as np

from mtmamba_jax.losses import edge_bce
from mtmamba_jax.metrics.base import (
    ConstantBaseline,
    Metric,
    Scores,
    best_f,
    count,
    ratio,
    sum_where,
    threshold_counts,
)
from mtmamba_jax.tasks import Task

THRESHOLDS = np.arange(1, 100) / 100.0
"""0.01, 0.02, ... 0.99."""


class Edge(Metric):
    """`maxF`, percent, and `loss`.

    `loss` is the official evaluation's: it reads the saved probability as if it were a logit again,
    so it is the training loss (mean over valid pixels) of sigmoid(logit), not of the logit.
    """

    def __init__(self, task: Task):
        super().__init__(
            task,
            {
                "pixels": ((), np.int64),
                "positives": ((), np.int64),
                "predicted": (THRESHOLDS.shape, np.int64),
                "true_positives": (THRESHOLDS.shape, np.int64),
                "loss": ((), np.float64),
            },
        )

    def units(self):
        """Returns the unit of each score that has one."""
        return {"maxF": "%"}

    def _measure(self, logits, label, valid):
        positive = valid & (label[..., 0] == 1)
        probability = jax.nn.sigmoid(logits)
        predicted, hits = threshold_counts(probability[..., 0], positive, valid, THRESHOLDS)
        return {
            "pixels": count(valid),
            "positives": count(positive),
            "predicted": predicted,
            "true_positives": hits,
            "loss": sum_where(valid, edge_bce(probability, label, valid, axes=())),
        }

    def compute(self, counts) -> Scores:
        """Returns maxF, percent, and loss."""
        pixels = counts["pixels"]
        predicted, hits = counts["predicted"], counts["true_positives"]
        return {
            "maxF": best_f(predicted, hits, counts["positives"], pixels, beta_squared=1.0),
            "loss": ratio(counts["loss"], pixels),
        }


class EdgeConstant(ConstantBaseline):
    """Contours everywhere: recall 1, precision the share of contour pixels."""

    def __init__(self, task: Task):
        super().__init__(task, {"pixels": ((), np.int64), "positives": ((), np.int64)})

    def _measure(self, label, valid):
        return {"pixels": count(valid), "positives": count(valid & (label[..., 0] == 1))}

    def logits(self, counts):
        """Returns a logit of probability near 1, whatever the counts."""
        del counts
        return np.array([20.0])

    def compute(self, counts) -> Scores:
        """Returns {"maxF": percent}."""
        pixels, positives = counts["pixels"], counts["positives"]
        return {"maxF": best_f(pixels, positives, positives, pixels, beta_squared=1.0)}
