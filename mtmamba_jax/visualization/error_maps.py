"""How wrong a prediction is at each pixel, as a picture: one way for each kind of task.

White is right, red and darker is more wrong, and ignored pixels have the colour that they have in
other pictures. A title says what the colours mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mtmamba_jax.messages import short
from mtmamba_jax.metrics.normals import angle
from mtmamba_jax.readout import is_ignored
from mtmamba_jax.tasks import Task
from mtmamba_jax.visualization.render import IGNORED, apply_colormap

LARGEST_ANGLE = 60.0  # degrees, of the darkest colour
_SHOWN = 98  # percentile of a map's errors that has the darkest colour
_WRONG, _RIGHT = (214, 39, 40), (238, 238, 238)
# From right to wrong, RGB, evenly apart; no yellow, which ignored pixels have.
_STOPS = ((255, 255, 255), (252, 190, 170), (239, 90, 70), (178, 16, 30), (70, 0, 16))


def _scale() -> np.ndarray:
    """Returns the colours between `_STOPS`: uint8 BGR [256 1 3]."""
    places = np.linspace(0, 1, len(_STOPS))
    at = np.linspace(0, 1, 256)
    channels = [np.interp(at, places, stops) for stops in zip(*_STOPS, strict=True)]
    return np.stack(channels[::-1], axis=-1).round().astype(np.uint8)[:, None]


_SCALE = _scale()

ErrorMap = tuple[str, np.ndarray]
"""What the colours mean, and a picture, uint8 RGB [h w 3]."""


def _classes(task: Task, predicted: np.ndarray, true: np.ndarray, counted: np.ndarray) -> ErrorMap:
    wrong = predicted != true
    share = f" ({100 * wrong[counted].mean():.0f} %)" if counted.any() else ""
    return f"red: wrong{share}", np.where(wrong[..., None], _WRONG, _RIGHT).astype(np.uint8)


def _depth(task: Task, predicted: np.ndarray, true: np.ndarray, counted: np.ndarray) -> ErrorMap:
    error = np.abs(predicted - true)
    most = float(np.percentile(error[counted], _SHOWN)) if counted.any() else 0.0
    return f"error, 0 to {short(most)} {task.unit}", apply_colormap(error / max(most, 1e-6), _SCALE)


def _normals(task: Task, predicted: np.ndarray, true: np.ndarray, counted: np.ndarray) -> ErrorMap:
    error = angle(predicted, true, np)
    return f"error, 0 to {LARGEST_ANGLE:.0f} deg", apply_colormap(error / LARGEST_ANGLE, _SCALE)


def _probability(
    task: Task, predicted: np.ndarray, true: np.ndarray, counted: np.ndarray
) -> ErrorMap:
    return "error, 0 to 1", apply_colormap(np.abs(predicted - true), _SCALE)


ERRORS: Mapping[str, Callable[[Task, np.ndarray, np.ndarray, np.ndarray], ErrorMap]] = {
    "classes": _classes,
    "depth": _depth,
    "normals": _normals,
    "probability": _probability,
    "saliency": _probability,
}
"""How a prediction's errors become a picture, for each `Task.display`."""


def render_error_map(task: Task, predicted: np.ndarray, true: np.ndarray) -> ErrorMap:
    """Draws where and how much a prediction is wrong.

    Args:
      task: chooses the way.
      predicted: of `readout.to_value`, [h w] or [h w 3].
      true: of `readout.label_value`, likewise.

    Returns:
      What the colours mean, with range and unit, and uint8 RGB [h w 3].
    """
    ignored = is_ignored(task, true)
    meaning, picture = ERRORS[task.display](task, predicted, true, ~ignored)
    picture[ignored] = IGNORED
    return meaning, picture
