"""Metric of edges, pixel by pixel: the best F1 over 99 thresholds.

A contour that is one pixel off counts as wrong. The boundary benchmark's odsF, which matches
contours within a distance, is in `mtmamba_jax.metrics.boundaries`.
"""

import jax
import numpy as np

from mtmamba_jax.metrics import base
from mtmamba_jax.tasks.losses import edge_bce
from mtmamba_jax.tasks.table import Task

THRESHOLDS = np.arange(1, 100) / 100.0
"""0.01, 0.02, ... 0.99."""


class Edge(base.Metric):
    """`maxF` in percent, and `loss`.

    `loss` is the official evaluation's, which takes the saved probability for a logit: the training
    loss (mean over valid pixels) of sigmoid(logit) instead of the logit.
    """

    def __init__(self, task: Task):
        pixels = dict.fromkeys(("pixels", "positives"), base.PIXELS)
        each = dict.fromkeys(("predicted", "true_positives"), (THRESHOLDS.shape, np.int64))
        super().__init__(task, pixels | each | {"loss": base.TOTAL}, {"maxF": "%"})

    def _measure(self, logits, label, valid):
        positive = valid & (label[..., 0] == 1)
        probability = jax.nn.sigmoid(logits)
        return {
            "pixels": base.count(valid),
            "positives": base.count(positive),
            **base.threshold_counts(probability[..., 0], positive, valid, THRESHOLDS),
            "loss": base.sum_where(valid, edge_bce(probability, label, valid, axes=())),
        }

    def _compute(self, sums) -> base.TaskScores:
        loss = base.ratio(sums["loss"], sums["pixels"])
        return {"maxF": base.best_f(sums, beta_squared=1.0), "loss": loss}


class EdgeConstant(base.PositiveEverywhere):
    """Contours everywhere."""

    beta_squared = 1.0
