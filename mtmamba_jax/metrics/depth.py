"""Depth or disparity: errors in its unit and as ratios, sums pooled over the pixels of the set."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from mtmamba_jax.metrics.base import ConstantBaseline, Metric, Scores, count, ratio, sum_where
from mtmamba_jax.tasks import Task

SMALLEST_DEPTH = 1e-9
"""Predictions are raised to it before every score, as the official evaluation does."""


class Depth(Metric):
    """RMSE, log_rmse (natural logarithm), abs_rel |p - g| / g, sq_rel (p - g)^2 / g.

    RMSE and sq_rel are in the task's unit.
    """

    def __init__(self, task: Task):
        super().__init__(
            task,
            {
                "pixels": ((), np.int64),
                "squared": ((), np.float64),
                "squared_log": ((), np.float64),
                "relative": ((), np.float64),
                "squared_relative": ((), np.float64),
            },
        )

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
        }

    def compute(self, counts) -> Scores:
        """Returns RMSE, log_rmse, abs_rel and sq_rel."""
        pixels = counts["pixels"]
        return {
            "RMSE": ratio(counts["squared"], pixels) ** 0.5,
            "log_rmse": ratio(counts["squared_log"], pixels) ** 0.5,
            "abs_rel": ratio(counts["relative"], pixels),
            "sq_rel": ratio(counts["squared_relative"], pixels),
        }


class DepthConstant(ConstantBaseline):
    """The mean depth everywhere, which minimises RMSE: its RMSE is the standard deviation."""

    def __init__(self, task: Task):
        super().__init__(
            task,
            {
                "pixels": ((), np.int64),
                "depth": ((), np.float64),
                "squared_depth": ((), np.float64),
            },
        )

    def _measure(self, label, valid):
        true = label[..., 0]
        return {
            "pixels": count(valid),
            "depth": sum_where(valid, true),
            "squared_depth": sum_where(valid, true**2),
        }

    def logits(self, counts):
        """Returns the mean depth, in the task's unit."""
        return np.array([ratio(counts["depth"], counts["pixels"])])

    def compute(self, counts) -> Scores:
        """Returns {"RMSE": value in the task's unit}."""
        variance = ratio(counts["squared_depth"], counts["pixels"]) - self.logits(counts)[0] ** 2
        # Rounding may leave a set of one single depth a hair below 0; NaN stays NaN.
        return {"RMSE": float(np.sqrt(np.maximum(variance, 0.0)))}
