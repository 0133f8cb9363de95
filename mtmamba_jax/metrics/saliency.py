"""Metric of saliency: the best F with beta^2 = 0.3 over 19 thresholds."""

import jax
import numpy as np

from mtmamba_jax.metrics import base
from mtmamba_jax.tasks.table import Task

BETA_SQUARED = 0.3
THRESHOLDS = np.arange(1, 20) / 20.0
"""0.05, 0.10, ... 0.95."""


class Saliency(base.Metric):
    """`maxF` as published and `maxF_exact`, in percent.

    The official evaluation applies a second sigmoid to the probability of the salient class. Its
    maps therefore lie in 0.5 .. 0.73, and of the 19 thresholds only 0.55 .. 0.70 separate pixels:
    this is the published maxF. `maxF_exact` compares the probability itself.
    """

    def __init__(self, task: Task):
        specs: dict[str, base.SumSpec] = dict.fromkeys(("pixels", "positives"), base.PIXELS)
        names = ("predicted", "true_positives", "predicted_exact", "true_positives_exact")
        specs |= dict.fromkeys(names, (THRESHOLDS.shape, np.int64))
        super().__init__(task, specs, dict.fromkeys(("maxF", "maxF_exact"), "%"))

    def _measure(self, logits, label, valid):
        positive = valid & (label[..., 0] == 1)
        probability = jax.nn.softmax(logits, axis=-1)[..., 1]
        published = jax.nn.sigmoid(probability)
        return {
            "pixels": base.count(valid),
            "positives": base.count(positive),
            **base.threshold_counts(published, positive, valid, THRESHOLDS),
            **base.threshold_counts(probability, positive, valid, THRESHOLDS, "_exact"),
        }

    def _compute(self, sums) -> base.TaskScores:
        return {
            "maxF": base.best_f(sums, BETA_SQUARED),
            "maxF_exact": base.best_f(sums, BETA_SQUARED, "_exact"),
        }


class SaliencyConstant(base.PositiveEverywhere):
    """Everything salient."""

    beta_squared = BETA_SQUARED
