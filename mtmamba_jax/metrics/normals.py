"""Metric of surface normals: angles between prediction and ground truth, in degrees."""

import jax.numpy as jnp
import numpy as np

from mtmamba_jax.metrics import base
from mtmamba_jax.tasks.readout import angle, unit_vectors
from mtmamba_jax.tasks.table import Task

BIN_WIDTH = 0.01
"""Width in degrees of the histogram bins that the median is read from."""

LIMITS = {"within_11.25": 11.25, "within_22.5": 22.5, "within_30": 30.0}
"""Upper limit in degrees of the angles that each of these scores counts."""


class Normals(base.Metric):
    """`mErr` and `median` in degrees, and the percentages of angles below 11.25, 22.5 and 30.

    The angle is taken after normalising the prediction; a zero vector is 90 degrees from any
    normal. A median cannot be computed from sums, so angles are counted in bins of `BIN_WIDTH`
    degrees: `median` is the middle of the bin with the lower of the two middle angles, at most
    BIN_WIDTH / 2 away from that angle (and float32's rounding of it, 2e-5).
    """

    BINS = round(180.0 / BIN_WIDTH)

    def __init__(self, task: Task):
        specs = dict.fromkeys(("pixels", *LIMITS), base.PIXELS)
        specs |= {"degrees": base.TOTAL, "angles": ((self.BINS,), np.int64)}
        units = {"mErr": "deg", "median": "deg", **dict.fromkeys(LIMITS, "%")}
        super().__init__(task, specs, units)

    def _measure(self, logits, label, valid):
        degrees = angle(unit_vectors(logits, jnp), label, jnp)
        bins = jnp.minimum(degrees / BIN_WIDTH, self.BINS - 1).astype(jnp.int32)
        return {
            "pixels": base.count(valid),
            "degrees": base.sum_where(valid, degrees),
            "angles": base.histogram(bins, valid, self.BINS),
            **{name: base.count(valid & (degrees < most)) for name, most in LIMITS.items()},
        }

    def _compute(self, sums) -> base.TaskScores:
        pixels = sums["pixels"]
        return {
            "mErr": base.ratio(sums["degrees"], pixels),
            "median": _median(np.asarray(sums["angles"])),
            **{name: base.percentage(sums[name], pixels) for name in LIMITS},
        }


class NormalsConstant(base.ConstantBaseline):
    """The direction with the least mean angle to all normals.

    It has no closed form, and the labels are seen only once, so they are summed in bins of the
    sphere: an octahedral map of `BINS_PER_SIDE`^2 bins, 1.6 degrees wide on average. Each bin keeps
    the number of its normals and the sum of their offsets from its centre, so their mean is exact;
    ignoring their spread around that mean changes mErr by less than 0.01 degree (tested). `compute`
    starts from the best of the fullest bins and of an even grid, then searches around it with steps
    that are halved down to 0.001 degree.
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
        index, counted = _bin_index(vectors, self.BINS_PER_SIDE), valid.ravel()
        offset = vectors - jnp.asarray(self._centres, jnp.float32)[index]
        # An index past the end is dropped.
        kept = jnp.where(counted, index, bins)
        return {
            "normals": base.histogram(index, counted, bins),
            "offset": jnp.zeros((bins, 3), jnp.float32).at[kept].add(offset, mode="drop"),
        }

    def compute(self, sums) -> base.TaskScores:
        """Returns mErr in degrees."""
        return {"mErr": self._search(sums)[1]}

    def _search(self, sums) -> tuple[np.ndarray, float]:
        """Returns the best direction and its mean angle in degrees; NaN without normals."""
        weights = np.asarray(sums["normals"])
        held = weights > 0
        if not held.any():
            return np.full(3, np.nan), float("nan")
        weights = weights[held]
        means = self._centres[held] + np.asarray(sums["offset"])[held] / weights[:, None]
        directions = means / np.linalg.norm(means, axis=1, keepdims=True)
        fullest = directions[np.argsort(weights)[-self.CANDIDATES :]]
        candidates = np.concatenate([fullest, _even_directions(self.CANDIDATES)])
        best, error = _best(candidates, directions, weights)
        step = np.radians(8.0)
        while step > np.radians(0.001):
            around = np.linspace(0.0, 2.0 * np.pi, 8, endpoint=False)[:, None]
            sideways = np.linalg.svd(best[None])[2][1:]
            offset = np.cos(around) * sideways[0] + np.sin(around) * sideways[1]
            moved = best + np.tan(step) * offset
            moved /= np.linalg.norm(moved, axis=1, keepdims=True)
            moved_best, moved_error = _best(moved, directions, weights)
            if moved_error < error:
                best, error = moved_best, moved_error
            else:
                step /= 2.0
        return best, error


def _median(angles: np.ndarray) -> float:
    """Returns the middle of the bin with the lower of the two middle angles, or NaN."""
    below = np.cumsum(angles)
    if not below[-1]:
        return float("nan")
    return BIN_WIDTH * (0.5 + int(np.searchsorted(below, (below[-1] + 1) // 2)))


def _best(candidates, directions, weights) -> tuple[np.ndarray, float]:
    """Returns the candidate with the least mean angle to the directions, and that angle."""
    errors = [np.average(angle(each, directions), weights=weights) for each in candidates]
    best = int(np.argmin(errors))
    return candidates[best], float(errors[best])


def _even_directions(number: int) -> np.ndarray:
    """Returns directions spread evenly over the sphere, [number 3]: a Fibonacci spiral."""
    index = np.arange(number) + 0.5
    z = 1.0 - 2.0 * index / number
    turn = np.pi * (1.0 + 5.0**0.5) * index
    radius = np.sqrt(1.0 - z**2)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)


def _bin_index(vectors, side: int):
    """Returns the bins of vectors [... 3]: cells of a square, the unfolded octahedral map."""
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
    """Returns the direction at the centre of each bin of `_bin_index`, [side^2 3]."""
    at = (np.arange(side) + 0.5) / side * 2.0 - 1.0
    v, u = np.meshgrid(at, at, indexing="ij")
    z = 1.0 - np.abs(u) - np.abs(v)
    fold = np.maximum(-z, 0.0)
    vectors = np.stack([u - np.sign(u) * fold, v - np.sign(v) * fold, z], axis=-1).reshape(-1, 3)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
