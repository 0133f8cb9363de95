"""One image: how many pixels of predicted and true contours match at each threshold."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mtmamba_jax.metrics.boundaries.contours import thin
from mtmamba_jax.metrics.boundaries.matching import Matcher

THRESHOLDS = np.concatenate([[0.001], np.arange(1, 100) / 100.0, [0.999]])
"""0.001, 0.01, 0.02, ... 0.99, 0.999; a contour is where a map is above."""

MAX_DISTANCE: Mapping[str, float] = {"nyudv2": 0.011, "pascal_context": 0.0075}
"""The largest distance of pixels that match, as a share of the image's diagonal: the published one
of each dataset (NYUDv2's is larger because its labels are less exact)."""


def count_matches(strength: np.ndarray, contour: np.ndarray, max_distance: float) -> np.ndarray:
    """Counts one image's contour pixels.

    Args:
      strength: of predicted contours, `suppress(levels)`, float64 [h w] in 0..1.
      contour: the true contour, bool [h w]; it is thinned here.
      max_distance: as a share of the diagonal, such as those of `MAX_DISTANCE`.

    Returns:
      matched true pixels, true pixels, matched predicted pixels, predicted pixels:
      int64 [thresholds 4]. With one true contour the first and third are equal.

    Raises:
      ValueError: maps of other types or of two sizes, or a distance that is no share.
      RuntimeError: the extra "data" is not installed.
    """
    if strength.dtype != np.float64 or strength.ndim != 2:
        raise ValueError(
            f"Wanted the strength of contours, float64 [h w]; got {strength.dtype} "
            f"{list(strength.shape)}. `suppress` makes it of a prediction."
        )
    if contour.dtype != bool or contour.shape != strength.shape:
        raise ValueError(
            f"The true contour is a map of the prediction's size, bool {list(strength.shape)}; got "
            f"{contour.dtype} {list(contour.shape)}. Resize the prediction, not the contour."
        )
    if not 0 < max_distance < 1:
        published = ", ".join(f"{value} ({name})" for name, value in MAX_DISTANCE.items())
        raise ValueError(
            "The largest distance is a share of the image's diagonal, above 0 and below 1; got "
            f"{max_distance}. Published: {published}."
        )
    truth = thin(contour)
    matcher = Matcher(strength > THRESHOLDS[0], truth, max_distance * np.hypot(*truth.shape))
    counts = np.zeros((len(THRESHOLDS), 4), np.int64)
    # From the highest on contours mostly grow, so that a matching stays one at the next.
    for i in reversed(range(len(THRESHOLDS))):
        predicted = thin(strength > THRESHOLDS[i])
        matched = matcher.count(predicted)
        counts[i] = matched, np.count_nonzero(truth), matched, np.count_nonzero(predicted)
    return counts
