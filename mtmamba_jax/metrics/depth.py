"""Metric of depth and disparity: absolute and relative errors over all pixels of the test set."""

import jax.numpy as jnp
import numpy as np

from mtmamba_jax.metrics.base import (
    PIXELS,
    TOTAL,
    ConstantBaseline,
    Metric,
    TaskScores,
    count,
    percent,
    ratio,
    sum_where,
)
from mtmamba_jax.tasks import Task

SMALLEST_DEPTH = 1e-9
"""Lower bound of predictions, in the task's unit, as in the official evaluation."""

DELTAS = {"delta1": 1.25, "delta2": 1.25**2, "delta3": 1.25**3}
"""Largest ratio that each score accepts; exact in float32."""


class Depth(Metric):
    """RMSE, log_rmse (natural logarithm), abs_rel |p - g| / g, sq_rel (p - g)^2 / g, delta1 to 3.

    With prediction p and ground truth g. RMSE and sq_rel are in the task's unit. delta_k is the
    percentage of pixels with max(p / g, g / p) < 1.25^k (Eigen et al., NeurIPS 2014); predictions
    that are not positive fail it.
    """

    def __init__(self, task: Task):
        counts = dict.fromkeys(("pixels", *DELTAS), PIXELS)
        errors = dict.fromkeys(("squared", "squared_log", "relative", "squared_relative"), TOTAL)
        super().__init__(task, counts | errors)

    def units(self):
        """Returns the units of the scores that have one."""
        unit = self.task.unit
        return {"RMSE": unit, "sq_rel": unit, **dict.fromkeys(DELTAS, "%")}

    def _measure(self, logits, label, valid):
        predicted = jnp.maximum(logits[..., 0], SMALLEST_DEPTH)
        true = label[..., 0]
        # A sensor's 0 m has neither a logarithm nor a ratio.
        divisor = jnp.maximum(true, SMALLEST_DEPTH)
        error = predicted - true
        return {
            "pixels": count(valid),
            "squared": sum_where(valid, error**2),
            "squared_log": sum_where(valid, (jnp.log(predicted) - jnp.log(divisor)) ** 2),
            "relative": sum_where(valid, jnp.abs(error) / divisor),
            "squared_relative": sum_where(valid, error**2 / divisor),
            **{
                name: count(valid & _within(logits[..., 0], true, most))
                for name, most in DELTAS.items()
            },
        }

    def compute(self, counts) -> TaskScores:
        """Returns the scores."""
        pixels = counts["pixels"]
        return {
            "RMSE": ratio(counts["squared"], pixels) ** 0.5,
            "log_rmse": ratio(counts["squared_log"], pixels) ** 0.5,
            "abs_rel": ratio(counts["relative"], pixels),
            "sq_rel": ratio(counts["squared_relative"], pixels),
            **{name: percent(counts[name], pixels) for name in DELTAS},
        }


def _within(predicted, true, most):
    # Avoids division. Both hold for positive numbers only: together they imply p < most^2 p.
    return (predicted < most * true) & (true < most * predicted)


class DepthConstant(ConstantBaseline):
    """The mean depth, which minimises the RMSE: it is then the standard deviation."""

    def __init__(self, task: Task):
        super().__init__(task, {"pixels": PIXELS, "depth": TOTAL, "squared_depth": TOTAL})

    def _measure(self, label, valid):
        true = label[..., 0]
        return {
            "pixels": count(valid),
            "depth": sum_where(valid, true),
            "squared_depth": sum_where(valid, true**2),
        }

    def logits(self, counts):
        """Returns the mean depth in the task's unit."""
        return np.array([ratio(counts["depth"], counts["pixels"])])

    def compute(self, counts) -> TaskScores:
        """Returns the RMSE in the task's unit."""
        variance = ratio(counts["squared_depth"], counts["pixels"]) - self.logits(counts)[0] ** 2
        # Rounding can make the variance of equal depths slightly negative; NaN stays NaN.
        return {"RMSE": float(np.sqrt(np.maximum(variance, 0.0)))}
