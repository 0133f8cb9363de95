"""The boundary benchmark: predicted contours matched with true ones within a distance. odsF.

Contours are thinned at 101 thresholds, matched one to one with the true contour's pixels, and
counts are summed over a set (Martin, Fowlkes, Malik, "Learning to detect natural image boundaries",
PAMI 2004; Arbelaez et al., "Contour detection and hierarchical image segmentation", PAMI 2011). As
multi-task work does it (SEISM), the soft map is first thinned by non-maximum suppression.

    python -m mtmamba_jax.metrics.boundaries --help

`maps` is what is done to pictures, `matching` the matching, `counts` one image, `scores` a set;
`folders` scores saved predictions, `benchmark` those of a model (the command `eval`).
"""

from __future__ import annotations

from mtmamba_jax.metrics.boundaries.contours import contour_of_regions, suppress, thin
from mtmamba_jax.metrics.boundaries.counts import MAX_DISTANCE, THRESHOLDS, count_matches
from mtmamba_jax.metrics.boundaries.scores import (
    Curve,
    Sums,
    compute,
    curve,
    empty,
    measure,
    merge,
    sum_counts,
)

__all__ = [
    "MAX_DISTANCE",
    "THRESHOLDS",
    "Curve",
    "Sums",
    "compute",
    "contour_of_regions",
    "count_matches",
    "curve",
    "empty",
    "measure",
    "merge",
    "sum_counts",
    "suppress",
    "thin",
]
