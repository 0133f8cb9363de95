"""Scores of a set of images from their counts.

As in `mtmamba_jax.metrics`: sums of single images are merged, and scores computed of the sums, so
they do not depend on an order or on how work was divided.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import numpy as np

from mtmamba_jax.metrics.boundaries.counts import THRESHOLDS

Sums = Mapping[str, np.ndarray]
"""counts: int64 [thresholds 4], see `count_matches`; best: int64 [4], those of each image at the
threshold that suits it best; images: int64 [], how many."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Precision against recall over the thresholds.

    Attributes:
      precision: share of predicted contour pixels that match, float64 [thresholds]; 1 where nothing
        is predicted.
      recall: share of true contour pixels that match, float64 [thresholds]; 1 where there are none.
      f: 2 P R / (P + R), float64 [thresholds]; 0 where both are.
    """

    precision: np.ndarray
    recall: np.ndarray
    f: np.ndarray


def empty() -> dict[str, np.ndarray]:
    """Returns the sums over no image."""
    return {
        "counts": np.zeros((len(THRESHOLDS), 4), np.int64),
        "best": np.zeros(4, np.int64),
        "images": np.zeros((), np.int64),
    }


def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the sums of one image, from its `count_matches`."""
    return {"counts": counts, "best": counts[np.argmax(curve(counts).f)], "images": np.int64(1)}


def merge(a: Sums, b: Sums) -> dict[str, np.ndarray]:
    """Returns the sums over both."""
    return {name: a[name] + b[name] for name in a}


def sum_counts(counts: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the sums over images, from the `count_matches` of each."""
    return functools.reduce(merge, map(measure, counts), empty())


def curve(counts: np.ndarray) -> Curve:
    """Returns precision, recall and F of counts, int64 [... 4]."""
    matched_true, true, matched_predicted, predicted = np.moveaxis(counts, -1, 0)
    recall = np.where(true > 0, matched_true / np.maximum(true, 1), 1.0)
    precision = np.where(predicted > 0, matched_predicted / np.maximum(predicted, 1), 1.0)
    total = precision + recall
    f = np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1.0), 0.0)
    return Curve(precision, recall, f)


def compute(sums: Sums) -> dict[str, float]:
    """Returns the scores; all are NaN over no image.

    Returns:
      odsF: F at the best threshold of the set, percent (ODS, optimal dataset scale).
      oisF: F with each image at its own best threshold, counts pooled, percent (OIS).
      AP: average precision, percent: precision at recalls 0, 0.01 ... 1, interpolated linearly and
        0 where no threshold reaches, summed and divided by 100, as the Berkeley benchmark does.
      precision, recall: at odsF's threshold, percent.
      threshold: odsF's.
    """
    if not sums["images"]:
        names = ("odsF", "oisF", "AP", "precision", "recall", "threshold")
        return dict.fromkeys(names, float("nan"))
    whole = curve(sums["counts"])
    best = int(np.argmax(whole.f))
    return {
        "odsF": 100.0 * float(whole.f[best]),
        "oisF": 100.0 * float(curve(sums["best"]).f),
        "AP": 100.0 * average_precision(whole),
        "precision": 100.0 * float(whole.precision[best]),
        "recall": 100.0 * float(whole.recall[best]),
        "threshold": float(THRESHOLDS[best]),
    }


def average_precision(points: Curve) -> float:
    """Returns the area below a curve; see `compute`. Of equal recalls the best precision counts."""
    recall, group = np.unique(points.recall, return_inverse=True)
    precision = np.zeros(recall.shape)
    np.maximum.at(precision, group, points.precision)
    at = np.arange(101) / 100.0
    return float(np.interp(at, recall, precision, left=0.0, right=0.0).sum() / 100.0)
