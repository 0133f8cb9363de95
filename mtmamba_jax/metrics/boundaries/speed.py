"""Times the boundary benchmark of one image, beside the plain way to match it.

    python -m mtmamba_jax.metrics.boundaries.speed [--size=425x560] [--limit=300]

CPU seconds of one core, at all thresholds. `plain` is `maximum_bipartite_matching` of all that is
predicted, from nothing at each threshold; it is ended after the limit, in seconds by the clock. The
images are made up: contours of cells with a soft prediction of them, and noise, the worst case.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

from mtmamba_jax.metrics.boundaries.counts import MAX_DISTANCE, THRESHOLDS, count_matches
from mtmamba_jax.metrics.boundaries.maps import contour_of_regions, suppress, thin
from mtmamba_jax.metrics.boundaries.matching import near_pixels
from mtmamba_jax.tables import row, rule

COLUMNS = {"image": 28, "true": 6, "predicted": 9, "near pairs": 10, "s": 6, "plain, s": 8}
RIGHT = tuple(COLUMNS)[1:]
DISTANCE = MAX_DISTANCE["nyudv2"]


def cells(size: tuple[int, int], count: int = 60, seed: int = 0) -> np.ndarray:
    """Returns the Voronoi cells of random points, a number for each pixel [h w]."""
    points = np.random.default_rng(seed).uniform(0, size, (count, 2))
    pixels = np.stack(np.indices(size), axis=-1).reshape(-1, 2)
    return cKDTree(points).query(pixels)[1].reshape(size)


def soft(contour: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns a prediction as networks make them: displaced, uneven, with texture; uint8 [h w]."""
    rng = np.random.default_rng(seed)
    places = np.indices(contour.shape) + [_texture(rng, contour.shape, 8, 2.0) for _ in range(2)]
    line = ndimage.gaussian_filter(ndimage.map_coordinates(contour.astype(float), places), 1.5)
    certainty = np.clip(0.5 + _texture(rng, contour.shape, 20, 0.4), 0, 1)
    texture = _texture(rng, contour.shape, 1.5, 0.06)
    probability = certainty * line / line.max() + texture + 0.05
    return np.round(255 * np.clip(probability, 0, 1)).astype(np.uint8)


def _texture(rng, size, radius: float, deviation: float) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.normal(size=size), radius)
    return noise * deviation / noise.std()


def noise(size: tuple[int, int]) -> np.ndarray:
    """Returns a prediction without any structure, uint8 [h w]."""
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


def dense_contour(size: tuple[int, int]) -> np.ndarray:
    """Returns a true contour that has about as many pixels as suppressed noise, bool [h w]."""
    return np.random.default_rng(1).random(size) < 0.35


def _scene(size):
    contour = contour_of_regions(cells(size))
    return soft(contour), contour


CASES: Mapping[str, Callable[[tuple[int, int]], tuple[np.ndarray, np.ndarray]]] = {
    "contours of 60 cells": _scene,
    "the same, noise predicted": lambda size: (noise(size), contour_of_regions(cells(size))),
    "noise, and noise predicted": lambda size: (noise(size), dense_contour(size)),
}
"""Size -> prediction and true contour."""


def plain_matches(strength: np.ndarray, contour: np.ndarray, max_distance: float) -> np.ndarray:
    """Returns the first column of `count_matches` by the plain way; arguments are the same."""
    truth, candidates = thin(contour), strength > THRESHOLDS[0]
    graph = near_pixels(candidates, truth, max_distance * np.hypot(*truth.shape))
    matched = []
    for threshold in THRESHOLDS:
        rows = thin(strength > threshold)[candidates]
        mates = maximum_bipartite_matching(graph[rows], perm_type="column")
        matched.append(np.count_nonzero(mates >= 0))
    return np.array(matched)


def _time_plain(ended: Connection, *arguments) -> None:
    start = time.process_time()
    matched = plain_matches(*arguments)
    ended.send((time.process_time() - start, matched))


def _plain(limit: float, *arguments) -> tuple[float, np.ndarray] | None:
    """Returns CPU seconds and matches of `plain_matches`, or None if the limit ended it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # A process, because scipy's matching cannot be interrupted.
    process = context.Process(target=_time_plain, args=(theirs, *arguments))
    process.start()
    theirs.close()  # so that the end of a process that fails is seen
    result = ours.recv() if ours.poll(limit) else None
    process.terminate()
    process.join()
    return result


def time_case(name: str, size: tuple[int, int], limit: float) -> str:
    """Returns a line of the table.

    Args:
      name: one of `CASES`.
      size: height and width.
      limit: seconds by the clock that the plain way may take.
    """
    levels, contour = CASES[name](size)
    start = time.process_time()
    strength = suppress(levels)
    counts = count_matches(strength, contour, DISTANCE)
    seconds = time.process_time() - start
    pairs = near_pixels(strength > THRESHOLDS[0], thin(contour), DISTANCE * np.hypot(*size)).nnz
    plain = _plain(limit, strength, contour, DISTANCE)
    if plain:
        assert np.array_equal(plain[1], counts[:, 0]), f"{name}: the two ways differ"
    figures = [*(f"{count:.0f}" for count in (counts[0, 1], counts[0, 3], pairs)), f"{seconds:.1f}"]
    return row([name, *figures, f"{plain[0]:.1f}" if plain else "ended"], COLUMNS, RIGHT)


def main(arguments: list[str] | None = None) -> int:
    """Prints a table, one line an image."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="425x560", help="HEIGHTxWIDTH (425x560, NYUDv2's)")
    parser.add_argument("--limit", type=float, default=300, help="of the plain way, seconds (300)")
    options = parser.parse_args(arguments)
    height, _, width = options.size.partition("x")
    print(f"{options.size}, {len(THRESHOLDS)} thresholds, one core")
    print(row(COLUMNS, COLUMNS, RIGHT))
    print(rule(COLUMNS, RIGHT))
    for name in CASES:
        print(time_case(name, (int(height), int(width)), options.limit), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
