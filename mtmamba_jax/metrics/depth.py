"""Metric of depth and disparity: absolute and relative errors over all pixels of the test set."""

import jax.numpy as jnp
import numpy as np

from mtmamba_jax.metrics import base
from mtmamba_jax.tasks.table import Task

SMALLEST_DEPTH = 1e-9
"""Lower bound of predictions, in the task's unit, as in the official evaluation."""

LARGEST_DEPTH = 1e10
"""Predictions above it count as infinite: a sum of their squared errors may overflow float32."""

DELTAS = {"delta1": 1.25, "delta2": 1.25**2, "delta3": 1.25**3}
"""Largest ratio that each score accepts; exact in float32."""


class Depth(base.Metric):
    """RMSE, log_rmse (natural logarithm), abs_rel |p - g| / g, sq_rel (p - g)^2 / g, delta1 to 3.

    With prediction p and ground truth g. RMSE and sq_rel are in the task's unit. delta_k is the
    percentage of pixels with max(p / g, g / p) < 1.25^k (Eigen et al., NeurIPS 2014); predictions
    that are not positive fail it. Those beyond `LARGEST_DEPTH` count as infinite.
    """

    def __init__(self, task: Task):
        errors = ("squared", "squared_log", "relative", "squared_relative")
        specs = dict.fromkeys(("pixels", *DELTAS), base.PIXELS) | dict.fromkeys(errors, base.TOTAL)
        units = {"RMSE": task.unit, "sq_rel": task.unit, **dict.fromkeys(DELTAS, "%")}
        super().__init__(task, specs, units, largest=LARGEST_DEPTH)

    def _measure(self, logits, label, valid):
        raw, true = logits[..., 0], label[..., 0]
        predicted = jnp.maximum(raw, SMALLEST_DEPTH)
        # A sensor's 0 m has neither a logarithm nor a ratio.
        divisor = jnp.maximum(true, SMALLEST_DEPTH)
        error = predicted - true
        return {
            "pixels": base.count(valid),
            "squared": base.sum_where(valid, error**2),
            "squared_log": base.sum_where(valid, (jnp.log(predicted) - jnp.log(divisor)) ** 2),
            "relative": base.sum_where(valid, jnp.abs(error) / divisor),
            "squared_relative": base.sum_where(valid, error**2 / divisor),
            # Avoids division. Together they imply p < most^2 p, so only positive numbers pass.
            **{
                name: base.count(valid & (raw < most * true) & (true < most * raw))
                for name, most in DELTAS.items()
            },
        }

    def _compute(self, sums) -> base.TaskScores:
        pixels = sums["pixels"]
        return {
            "RMSE": base.ratio(sums["squared"], pixels) ** 0.5,
            "log_rmse": base.ratio(sums["squared_log"], pixels) ** 0.5,
            "abs_rel": base.ratio(sums["relative"], pixels),
            "sq_rel": base.ratio(sums["squared_relative"], pixels),
            **{name: base.percentage(sums[name], pixels) for name in DELTAS},
        }


class DepthConstant(base.ConstantBaseline):
    """The mean depth, which minimises the RMSE: it is then the standard deviation.

    Sums of squares would lose a small deviation from a large mean, in float32 one of 0.1 %. So each
    batch keeps its mean and the sum of squared deviations from it, and `merge` combines those (Chan
    et al., 1979). Equal depths deviate by exactly 0.
    """

    def __init__(self, task: Task):
        totals = dict.fromkeys(("mean", "squared_deviation"), base.TOTAL)
        super().__init__(task, {"pixels": base.PIXELS, **totals})

    def _measure(self, label, valid):
        true, pixels = label[..., 0], base.count(valid)
        mean = jnp.float32(0)
        for _ in range(2):  # the second time adds what the first one's sum lost by rounding
            mean += base.sum_where(valid, true - mean) / jnp.maximum(pixels, 1)
        deviation = base.sum_where(valid, (true - mean) ** 2)
        return {"pixels": pixels, "mean": mean, "squared_deviation": deviation}

    def merge(self, a, b) -> dict[str, np.ndarray]:
        """Returns the pixels, mean and squared deviation of both."""
        sums = super().merge(a, b)
        share = int(b["pixels"]) / max(int(sums["pixels"]), 1)
        apart = np.float64(b["mean"]) - np.float64(a["mean"])
        sums["mean"] = np.asarray(np.float64(a["mean"]) + apart * share)
        sums["squared_deviation"] += apart**2 * share * int(a["pixels"])
        return sums

    def compute(self, sums) -> base.TaskScores:
        """Returns the RMSE in the task's unit."""
        return {"RMSE": base.ratio(sums["squared_deviation"], sums["pixels"]) ** 0.5}
