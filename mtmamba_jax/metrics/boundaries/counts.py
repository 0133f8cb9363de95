"""Counts how many contour pixels of one image match at each threshold."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from mtmamba_jax.metrics.boundaries.contours import thin
from mtmamba_jax.metrics.boundaries.matching import Matcher

THRESHOLDS = np.concatenate([[0.001], np.arange(1, 100) / 100.0, [0.999]])
"""0.001, 0.01, 0.02, ... 0.99, 0.999. A contour is where the strength exceeds the threshold."""

MAX_DISTANCE: Mapping[str, float] = {"nyudv2": 0.011, "pascal_context": 0.0075}
"""The published maximum distance between matched pixels, as a fraction of the image diagonal.
NYUDv2's is larger because its labels are less precise."""


def count_matches(
    strength: Float[np.ndarray, "h w"], contour: Bool[np.ndarray, "h w"], max_distance: float
) -> Int[np.ndarray, "thresholds 4"]:
    """Counts the contour pixels of one image at each of `THRESHOLDS`.

    Args:
      strength: Strength of predicted contours, from `suppress`.
      contour: True contour, of any thickness; it is thinned here.
      max_distance: Maximum distance of matched pixels, as a fraction of the image diagonal.

    Returns:
      Numbers of matched true pixels, true pixels, matched predicted pixels and predicted pixels,
      int64. With a single annotator per image the first and third are equal.

    Raises:
      ValueError: If a map has the wrong dtype or shape, or the distance is not a fraction.
      RuntimeError: If the extra "data" is not installed.
    """
    if strength.dtype != np.float64 or strength.ndim != 2:
        raise ValueError(
            f"The strength of contours must be float64 [h w]; got {strength.dtype} "
            f"{list(strength.shape)}. `suppress` computes it from a prediction."
        )
    if contour.dtype != bool or contour.shape != strength.shape:
        raise ValueError(
            f"The true contour must have the prediction's size, bool {list(strength.shape)}; got "
            f"{contour.dtype} {list(contour.shape)}. Resize the prediction, not the contour."
        )
    if not 0 < max_distance < 1:
        published = ", ".join(f"{value} ({name})" for name, value in MAX_DISTANCE.items())
        raise ValueError(
            "The maximum distance is a fraction of the image diagonal, between 0 and 1; got "
            f"{max_distance}. Published: {published}."
        )
    truth = thin(contour)
    matcher = Matcher(strength > THRESHOLDS[0], truth, max_distance * np.hypot(*truth.shape))
    counts = np.zeros((len(THRESHOLDS), 4), np.int64)
    # From high to low thresholds contours mostly grow, so a matching mostly stays valid.
    for i in reversed(range(len(THRESHOLDS))):
        predicted = thin(strength > THRESHOLDS[i])
        matched = matcher.count(predicted)
        counts[i] = matched, np.count_nonzero(truth), matched, np.count_nonzero(predicted)
    return counts
