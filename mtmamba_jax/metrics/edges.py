"""Metric of edges, pixel by pixel: the best F1 over 99 thresholds.

A contour that is one pixel off counts as wrong. The boundary benchmark's odsF, which matches
contours within a distance, is in `mtmamba_jax.metrics.boundaries`.
"""

import jax
import numpy as np

from mtmamba_jax.losses import edge_bce
from mtmamba_jax.metrics.base import (
    PIXELS,
    TOTAL,
    Metric,
    PositiveEverywhere,
    TaskScores,
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
    """`maxF` in percent, and `loss`.

    `loss` is the official evaluation's, which takes the saved probability for a logit: the training
    loss (mean over valid pixels) of sigmoid(logit) instead of the logit.
    """

    def __init__(self, task: Task):
        super().__init__(
            task,
            {
                "pixels": PIXELS,
                "positives": PIXELS,
                "predicted": (THRESHOLDS.shape, np.int64),
                "true_positives": (THRESHOLDS.shape, np.int64),
                "loss": TOTAL,
            },
        )

    def units(self):
        """Returns the units of the scores that have one."""
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

    def compute(self, counts) -> TaskScores:
        """Returns the scores."""
        pixels = counts["pixels"]
        predicted, hits = counts["predicted"], counts["true_positives"]
        return {
            "maxF": best_f(predicted, hits, counts["positives"], pixels, beta_squared=1.0),
            "loss": ratio(counts["loss"], pixels),
        }


class EdgeConstant(PositiveEverywhere):
    """Contours everywhere."""

    beta_squared = 1.0
    positive_logits = (20.0,)
