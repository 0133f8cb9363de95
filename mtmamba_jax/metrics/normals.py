"""Surface normals: the mean angle between prediction and truth, degrees, pooled over pixels."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from mtmamba_jax.losses import normalise
from mtmamba_jax.metrics.base import ConstantBaseline, Metric, Scores, count, ratio, sum_where
from mtmamba_jax.tasks import Task


class Normals(Metric):
    """`mErr`, degrees: the mean of 2 atan2(|p - g|, |p + g|) after normalising the prediction p."""

    def __init__(self, task: Task):
        super().__init__(task, {"pixels": ((), np.int64), "degrees": ((), np.float64)})

    def _measure(self, logits, label, valid):
        return {
            "pixels": count(valid),
            "degrees": sum_where(valid, _angle(normalise(logits), label, jnp)),
        }

    def compute(self, counts) -> Scores:
        """Returns {"mErr": degrees}."""
        return {"mErr": ratio(counts["degrees"], counts["pixels"])}


class NormalsConstant(ConstantBaseline):
    """The one direction whose mean angle to all normals is least.

    It has no closed form, and the labels pass only once, so they are summed in bins of the sphere:
    an octahedral map of `BINS_PER_SIDE`^2 bins, 1.6 degrees wide on average. A bin keeps how many
    normals fell in it and the sum of their offsets from its centre, so it stands for the exact mean
    of its normals; what is lost, their spread around that mean, changes mErr by less than 0.01
    degree (tested). `logits` searches: the best of the commonest bins and of an even grid, then
    steps around it that halve to 0.001 degree.
    """

    BINS_PER_SIDE = 128
    CANDIDATES = 256

    def __init__(self, task: Task):
        bins = self.BINS_PER_SIDE**2
        super().__init__(task, {"normals": ((bins,), np.int64), "offset": ((bins, 3), np.float64)})
        self._centres = _bin_centres(self.BINS_PER_SIDE)

    def _measure(self, label, valid):
        bins = self.BINS_PER_SIDE**2
        vectors = label.reshape(-1, 3)
        index = jnp.where(valid.ravel(), _bin_index(vectors, self.BINS_PER_SIDE), bins)
        centres = jnp.asarray(self._centres, jnp.float32)
        offset = vectors - centres.at[index].get(mode="clip")
        # An index past the end, an ignored pixel's, is dropped.
        return {
            "normals": jnp.zeros(bins, jnp.int32).at[index].add(1, mode="drop"),
            "offset": jnp.zeros((bins, 3)).at[index].add(offset, mode="drop"),
        }

    def logits(self, counts):
        """Returns the best direction, a unit vector [3]."""
        directions, weights = self._directions(counts)
        if not weights.size:
            return np.full(3, np.nan)
        common = directions[np.argsort(weights)[-self.CANDIDATES :]]
        candidates = np.concatenate([common, _even_directions(self.CANDIDATES)])
        best, error = _best(candidates, directions, weights)
        step = np.radians(8.0)
        while step > np.radians(0.001):
            around = np.linspace(0.0, 2.0 * np.pi, 8, endpoint=False)[:, None]
            sideways = np.linalg.svd(best[None])[2][1:]
            moved = best + np.tan(step) * (
                np.cos(around) * sideways[0] + np.sin(around) * sideways[1]
            )
            moved /= np.linalg.norm(moved, axis=1, keepdims=True)
            moved_best, moved_error = _best(moved, directions, weights)
            if moved_error < error:
                best, error = moved_best, moved_error
            else:
                step /= 2.0
        return best

    def compute(self, counts) -> Scores:
        """Returns {"mErr": degrees}."""
        directions, weights = self._directions(counts)
        if not weights.size:
            return {"mErr": float("nan")}
        return {"mErr": _mean_angle(self.logits(counts), directions, weights)}

    def _directions(self, counts) -> tuple[np.ndarray, np.ndarray]:
        """The mean direction of each bin that holds normals [bins 3], and how many [bins]."""
        weights = np.asarray(counts["normals"])
        held = weights > 0
        weights = weights[held]
        directions = self._centres[held] + np.asarray(counts["offset"])[held] / weights[:, None]
        return directions / np.linalg.norm(directions, axis=1, keepdims=True), weights


def _angle(a, b, xp):
    """Angle between unit vectors [... 3], degrees. Exact at 0 and 180, where arccos is not."""
    apart = xp.linalg.norm(a - b, axis=-1)
    return xp.degrees(2.0 * xp.arctan2(apart, xp.linalg.norm(a + b, axis=-1)))


def _mean_angle(direction, directions, weights) -> float:
    return float(np.average(_angle(direction, directions, np), weights=weights))


def _best(candidates, directions, weights) -> tuple[np.ndarray, float]:
    errors = [_mean_angle(candidate, directions, weights) for candidate in candidates]
    best = int(np.argmin(errors))
    return candidates[best], errors[best]


def _even_directions(number: int) -> np.ndarray:
    """Directions spread evenly over the sphere [number 3]: a Fibonacci spiral."""
    index = np.arange(number) + 0.5
    z = 1.0 - 2.0 * index / number
    turn = np.pi * (1.0 + 5.0**0.5) * index
    radius = np.sqrt(1.0 - z**2)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)


def _bin_index(vectors, side: int):
    """Bins of vectors [... 3]: the sphere on an octahedron, unfolded to a square of cells."""
    flat = vectors / jnp.maximum(jnp.sum(jnp.abs(vectors), axis=-1, keepdims=True), 1e-12)
    x, y, z = flat[..., 0], flat[..., 1], flat[..., 2]
    # The half with z < 0 folds outwards over the square's four corners.
    u = jnp.where(z < 0, (1.0 - jnp.abs(y)) * jnp.where(x < 0, -1.0, 1.0), x)
    v = jnp.where(z < 0, (1.0 - jnp.abs(x)) * jnp.where(y < 0, -1.0, 1.0), y)
    column, row = (
        jnp.clip(jnp.floor((side * 0.5) * (at + 1.0)), 0, side - 1).astype(jnp.int32)
        for at in (u, v)
    )
    return row * side + column


def _bin_centres(side: int) -> np.ndarray:
    """The direction at the centre of each bin of `_bin_index`, [side^2 3]."""
    at = (np.arange(side) + 0.5) / side * 2.0 - 1.0
    v, u = np.meshgrid(at, at, indexing="ij")
    z = 1.0 - np.abs(u) - np.abs(v)
    fold = np.maximum(-z, 0.0)
    vectors = np.stack([u - np.sign(u) * fold, v - np.sign(v) * fold, z], axis=-1).reshape(-1, 3)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
