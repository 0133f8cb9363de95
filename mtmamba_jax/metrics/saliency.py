"""Metric of saliency: the best F with beta^2 = 0.3 over 19 thresholds."""

import jax
import numpy as np

from mtmamba_jax.metrics.base import (
    PIXELS,
    Metric,
    PositiveEverywhere,
    TaskScores,
    best_f,
    count,
    threshold_counts,
)
from mtmamba_jax.tasks import Task

BETA_SQUARED = 0.3
THRESHOLDS = np.arange(1, 20) / 20.0
"""0.05, 0.10, ... 0.95."""


class Saliency(Metric):
    """`maxF` as published and `maxF_exact`, in percent.

    The official evaluation applies a second sigmoid to the probability of the salient class. Its
    maps therefore lie in 0.5 .. 0.73, and of the 19 thresholds only 0.55 .. 0.70 separate pixels:
    this is the published maxF. `maxF_exact` compares the probability itself.
    """

    def __init__(self, task: Task):
        shape = THRESHOLDS.shape
        super().__init__(
            task,
            {
                "pixels": PIXELS,
                "positives": PIXELS,
                "predicted": (shape, np.int64),
                "true_positives": (shape, np.int64),
                "predicted_exact": (shape, np.int64),
                "true_positives_exact": (shape, np.int64),
            },
        )

    def units(self):
        """Returns the units of the scores that have one."""
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

    def compute(self, counts) -> TaskScores:
        """Returns the scores."""
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


class SaliencyConstant(PositiveEverywhere):
    """Everything salient."""

    beta_squared = BETA_SQUARED
    positive_logits = (0.0, 20.0)
