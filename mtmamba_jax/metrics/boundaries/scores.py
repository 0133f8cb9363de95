"""Computes boundary scores of a test set from the counts of its images.

As in `mtmamba_jax.metrics`, scores are computed from sums over images, so they do not depend on the
order of images or on how the work was divided.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float, Int

from mtmamba_jax.metrics.boundaries.counts import THRESHOLDS

BoundarySums = Mapping[str, np.ndarray]
"""counts: sum of `count_matches`, int64 [thresholds 4]; best: sum of each image's counts at its own
best threshold, int64 [4]; images: number of images, int64 []."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Precision, recall and F at each threshold.

    Attributes:
      precision: Fraction of predicted contour pixels that match; 1 if nothing is predicted.
      recall: Fraction of true contour pixels that match; 1 if there are none.
      f: 2 P R / (P + R); 0 if both are 0.
    """

    precision: Float[np.ndarray, " thresholds"]
    recall: Float[np.ndarray, " thresholds"]
    f: Float[np.ndarray, " thresholds"]


def sum_counts(counts: Iterable[Int[np.ndarray, "thresholds 4"]]) -> dict[str, np.ndarray]:
    """Returns the sums over images, given the `count_matches` of each."""
    total, best = np.zeros((len(THRESHOLDS), 4), np.int64), np.zeros(4, np.int64)
    images = np.zeros((), np.int64)
    for each in counts:
        total += each
        best += each[np.argmax(curve(each).f)]
        images += 1
    return {"counts": total, "best": best, "images": images}


def curve(counts: Int[np.ndarray, "*thresholds 4"]) -> Curve:
    """Returns precision, recall and F of counts."""
    matched_true, true, matched_predicted, predicted = np.moveaxis(counts, -1, 0)
    recall = np.where(true > 0, matched_true / np.maximum(true, 1), 1.0)
    precision = np.where(predicted > 0, matched_predicted / np.maximum(predicted, 1), 1.0)
    total = precision + recall
    f = np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1.0), 0.0)
    return Curve(precision, recall, f)


def compute(sums: BoundarySums) -> dict[str, float]:
    """Returns the scores by name; all are NaN for sums over no image.

    Returns:
      odsF: F at the best threshold for the whole set, in percent (ODS, optimal dataset scale).
      oisF: F with each image at its own best threshold, counts pooled, in percent (OIS).
      AP: Average precision in percent: precision at recalls 0, 0.01 ... 1, interpolated linearly,
        0 where no threshold reaches, summed and divided by 100 like the Berkeley benchmark does.
      precision, recall: Precision and recall at odsF's threshold, in percent.
      threshold: odsF's threshold.
    """
    if not sums["images"]:
        names = ("odsF", "oisF", "AP", "precision", "recall", "threshold")
        return dict.fromkeys(names, float("nan"))
    pooled = curve(sums["counts"])
    best = int(np.argmax(pooled.f))
    return {
        "odsF": 100.0 * float(pooled.f[best]),
        "oisF": 100.0 * float(curve(sums["best"]).f),
        "AP": 100.0 * average_precision(pooled),
        "precision": 100.0 * float(pooled.precision[best]),
        "recall": 100.0 * float(pooled.recall[best]),
        "threshold": float(THRESHOLDS[best]),
    }


def average_precision(points: Curve) -> float:
    """Returns the area below a curve; see `compute`. Of equal recalls the best precision counts."""
    recall, group = np.unique(points.recall, return_inverse=True)
    precision = np.zeros(recall.shape)
    np.maximum.at(precision, group, points.precision)
    at = np.arange(101) / 100.0
    return float(np.interp(at, recall, precision, left=0.0, right=0.0).sum() / 100.0)
