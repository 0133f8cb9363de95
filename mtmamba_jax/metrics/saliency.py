"""Saliency: the best F with beta^2 = 0.3 over 19 thresholds, counts pooled over the set."""

from __future__ import annotations

import jax
import numpy as np

from mtmamba_jax.metrics.base import (
    ConstantBaseline,
    Metric,
    Scores,
    best_f,
    count,
    threshold_counts,
)
from mtmamba_jax.tasks import Task

BETA_SQUARED = 0.3
THRESHOLDS = np.arange(1, 20) / 20.0
"""0.05, 0.10, ... 0.95."""


class Saliency(Metric):
    """`maxF` as published and `maxF_exact`, percent.

    The official evaluation puts the salient class's probability through a sigmoid once more before
    it compares, so its map lies in 0.5 .. 0.73, and of the 19 thresholds 0.55 .. 0.70 alone tell
    pixels apart: published maxF means that. `maxF_exact` compares the probability itself.
    """

    def __init__(self, task: Task):
        shape = THRESHOLDS.shape
        super().__init__(
            task,
            {
                "pixels": ((), np.int64),
                "positives": ((), np.int64),
                "predicted": (shape, np.int64),
                "true_positives": (shape, np.int64),
                "predicted_exact": (shape, np.int64),
                "true_positives_exact": (shape, np.int64),
            },
        )

    def units(self):
        """Returns the unit of each score that has one."""
        return {"maxF": "%", "maxF_exact": "%"}

    def _measure(self, logits, label, valid):
        positive = valid & (label[..., 0] == 1)
        probability = jax.nn.softmax(logits, axis=-1)[..., 1]
        published = jax.nn.sigmoid(probability)
        predicted, hits = threshold_counts(published, positive, valid, THRESHOLDS)
        predicted_exact, hits_exact = threshold_counts(probability, positive, valid, THRESHOLDS)
        return {
            "pixels": count(valid),
            "positives": count(positive),
            "predicted": predicted,
            "true_positives": hits,
            "predicted_exact": predicted_exact,
            "true_positives_exact": hits_exact,
        }

    def compute(self, counts) -> Scores:
        """Returns maxF and maxF_exact, percent."""
        positives, pixels = counts["positives"], counts["pixels"]
        return {
            name: best_f(
                counts["predicted" + which],
                counts["true_positives" + which],
                positives,
                pixels,
                BETA_SQUARED,
            )
            for name, which in (("maxF", ""), ("maxF_exact", "_exact"))
        }


class SaliencyConstant(ConstantBaseline):
    """Everything salient: recall 1, precision the share of salient pixels."""

    def __init__(self, task: Task):
        super().__init__(task, {"pixels": ((), np.int64), "positives": ((), np.int64)})

    def _measure(self, label, valid):
        return {"pixels": count(valid), "positives": count(valid & (label[..., 0] == 1))}

    def logits(self, counts):
        """Returns a probability of salient near 1, whatever the counts."""
        del counts
        return np.array([0.0, 20.0])

    def compute(self, counts) -> Scores:
        """Returns {"maxF": percent}."""
        pixels, positives = counts["pixels"], counts["positives"]
        return {"maxF": best_f(pixels, positives, positives, pixels, BETA_SQUARED)}
