"""Synthetic contours with predictions of them, and matching from scratch at every threshold."""

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree

from mtmamba_jax.metrics.boundaries.contours import thin
from mtmamba_jax.metrics.boundaries.counts import THRESHOLDS
from mtmamba_jax.metrics.boundaries.matching import near_pixels


def cells(size, count=60, seed=0):
    """Returns the Voronoi cells of random points: a cell number for each pixel [h w]."""
    points = np.random.default_rng(seed).uniform(0, size, (count, 2))
    pixels = np.stack(np.indices(size), axis=-1).reshape(-1, 2)
    return KDTree(points).query(pixels)[1].reshape(size)


def soft_prediction(contour, seed=0):
    """Returns a prediction like a network's: displaced, uneven, with texture, uint8 [h w]."""
    rng = np.random.default_rng(seed)
    places = np.indices(contour.shape) + [_texture(rng, contour.shape, 8, 2.0) for _ in range(2)]
    line = ndimage.gaussian_filter(ndimage.map_coordinates(contour.astype(float), places), 1.5)
    certainty = np.clip(0.5 + _texture(rng, contour.shape, 20, 0.4), 0, 1)
    texture = _texture(rng, contour.shape, 1.5, 0.06)
    probability = certainty * line / line.max() + texture + 0.05
    return np.round(255 * np.clip(probability, 0, 1)).astype(np.uint8)


def _texture(rng, size, radius, deviation):
    noise = ndimage.gaussian_filter(rng.normal(size=size), radius)
    return noise * deviation / noise.std()


def matches_from_scratch(strength, contour, max_distance):
    """Returns the matched pixels of `count_matches`, matched independently at each threshold."""
    truth, candidates = thin(contour), strength > THRESHOLDS[0]
    graph = near_pixels(candidates, truth, max_distance * np.hypot(*truth.shape))
    matched = []
    for threshold in THRESHOLDS:
        rows = thin(strength > threshold)[candidates]
        mates = maximum_bipartite_matching(graph[rows], perm_type="column")
        matched.append(np.count_nonzero(mates >= 0))
    return np.array(matched)
