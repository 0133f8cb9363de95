"""Depth or disparity: errors in its unit and as ratios, sums pooled over the pixels of the set."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from mtmamba_jax.metrics.base import (
    ConstantBaseline,
    Metric,
    Scores,
    count,
    percent,
    ratio,
    sum_where,
)
from mtmamba_jax.tasks import Task

SMALLEST_DEPTH = 1e-9
"""Predictions are raised to it before every error, as the official evaluation does."""

DELTAS = {"delta1": 1.25, "delta2": 1.25**2, "delta3": 1.25**3}
"""The ratio that each score allows; exact in float32."""


class Depth(Metric):
    """RMSE, log_rmse (natural logarithm), abs_rel |p - g| / g, sq_rel (p - g)^2 / g, delta1 to 3.

    RMSE and sq_rel are in the task's unit. delta_k is the share of pixels with
    max(p / g, g / p) < 1.25^k, percent (Eigen et al., NeurIPS 2014); a prediction that is not
    positive is wrong there.
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
                **dict.fromkeys(DELTAS, ((), np.int64)),
            },
        )

    def units(self):
        """Returns the unit of each score that has one."""
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

    def compute(self, counts) -> Scores:
        """Returns RMSE, log_rmse, abs_rel, sq_rel and, in percent, delta1, delta2, delta3."""
        pixels = counts["pixels"]
        return {
            "RMSE": ratio(counts["squared"], pixels) ** 0.5,
            "log_rmse": ratio(counts["squared_log"], pixels) ** 0.5,
            "abs_rel": ratio(counts["relative"], pixels),
            "sq_rel": ratio(counts["squared_relative"], pixels),
            **{name: percent(counts[name], pixels) for name in DELTAS},
        }


def _within(predicted, true, most):
    # Without division. Both hold for positive numbers alone: added, they say p < most^2 p.
    return (predicted < most * true) & (true < most * predicted)


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
