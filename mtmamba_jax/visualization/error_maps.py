"""Renders how wrong a prediction is at each pixel, for each kind of task.

White is correct, darker red is worse, and ignored pixels keep the colour they have elsewhere. The
title that comes with an error map explains its colours.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8

from mtmamba_jax.messages import short
from mtmamba_jax.tasks.readout import angle, is_ignored
from mtmamba_jax.tasks.table import Task
from mtmamba_jax.visualization.render import IGNORED, apply_colormap

LARGEST_ANGLE = 60.0  # degrees, drawn in the darkest colour
_PERCENTILE = 98  # of a map's depth errors, drawn in the darkest colour
_WRONG, _RIGHT = (214, 39, 40), (238, 238, 238)
# RGB colours from correct to wrong, evenly spaced. No yellow, the colour of ignored pixels.
_STOPS = np.array(((255, 255, 255), (252, 190, 170), (239, 90, 70), (178, 16, 30), (70, 0, 16)))


def _create_colormap() -> UInt8[np.ndarray, "256 1 3"]:
    """Returns BGR colours, interpolated between `_STOPS`."""
    places, positions = np.linspace(0, 1, 256), np.linspace(0, 1, len(_STOPS))
    channels = [np.interp(places, positions, stops) for stops in _STOPS.T[::-1]]
    return np.stack(channels, axis=-1).round().astype(np.uint8)[:, None]


_COLORMAP = _create_colormap()

ErrorMap = tuple[str, UInt8[np.ndarray, "h w 3"]]
"""What the colours mean, and the RGB image."""


def _render_classes(task, predicted, true, counted) -> ErrorMap:
    wrong = predicted != true
    share = f" ({100 * wrong[counted].mean():.0f} %)" if counted.any() else ""
    return f"red: wrong{share}", np.where(wrong[..., None], _WRONG, _RIGHT).astype(np.uint8)


def _render_depth(task, predicted, true, counted) -> ErrorMap:
    error = np.abs(predicted - true)
    most = float(np.percentile(error[counted], _PERCENTILE)) if counted.any() else 0.0
    image = apply_colormap(error / max(most, 1e-6), _COLORMAP)
    return f"error, 0 to {short(most)} {task.unit}", image


def _render_normals(task, predicted, true, counted) -> ErrorMap:
    image = apply_colormap(np.asarray(angle(predicted, true)) / LARGEST_ANGLE, _COLORMAP)
    return f"error, 0 to {LARGEST_ANGLE:.0f} deg", image


def _render_probability(task, predicted, true, counted) -> ErrorMap:
    return "error, 0 to 1", apply_colormap(np.abs(predicted - true), _COLORMAP)


ERRORS: Mapping[str, Callable[[Task, np.ndarray, np.ndarray, np.ndarray], ErrorMap]] = {
    "classes": _render_classes,
    "depth": _render_depth,
    "normals": _render_normals,
    "probability": _render_probability,
    "saliency": _render_probability,
}
"""The function that renders a prediction's errors for each `Task.quantity`."""


def render_error_map(task: Task, predicted: np.ndarray, true: np.ndarray) -> ErrorMap:
    """Renders where and how much a prediction is wrong; says what its colours mean, with units.

    Args:
      task: Task of both maps.
      predicted: Prediction from `readout.to_value`, [h w] or [h w 3].
      true: Label from `readout.label_value`, of the same shape.
    """
    ignored = is_ignored(task, true)
    meaning, image = ERRORS[task.quantity](task, predicted, true, ~ignored)
    image[ignored] = IGNORED
    return meaning, image
