"""Panels: one picture of an image with all its maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from etils import epath

from mtmamba_jax.data_pipelines.batch import denormalise, remove_padding
from mtmamba_jax.devices.processes import is_first
from mtmamba_jax.messages import short
from mtmamba_jax.readout import is_ignored, label_value, to_value
from mtmamba_jax.tasks import Task
from mtmamba_jax.visualization.error_maps import render_error_map
from mtmamba_jax.visualization.legend import add_legend
from mtmamba_jax.visualization.render import depth_range, image_grid, render_map, write_png


def example_panel(
    tasks: Sequence[Task], example: Mapping[str, np.ndarray], logits: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Draws a test image with its predictions, below them its labels and errors: uint8 RGB.

    Args:
      tasks: the maps to draw.
      example: an example of a batch, without the batch axis. Labels on a finer grid are drawn at
        the image's size, without the pixels in between.
      logits: {task: [h w channels]}.
    """
    photo = denormalise(example["images"])
    size = example["size"]
    photo, blank = remove_padding(photo, size), np.full((*size, 3), 255, np.uint8)
    predicted, true, errors = {"image": photo}, {"": blank}, {"": blank}
    maps = {}
    for task in tasks:
        label = example[task.name]
        step = len(label) // len(example["images"])
        label = remove_padding(label_value(task, label[::step, ::step]), size)
        value = remove_padding(to_value(task, logits[task.name]), size)
        predicted[f"{task.name}: predicted"] = render_map(task, value, like=label)
        true[f"{task.name}: true{_span(task, label)}"] = render_map(task, label)
        maps[task.name] = (value, label)
        meaning, picture = render_error_map(task, value, label)
        errors[f"{task.name}: {meaning}"] = picture
    return add_legend(image_grid([predicted, true, errors]), tasks, maps)


def _span(task: Task, label: np.ndarray) -> str:
    """Returns what the colours of depth go from and to; nothing of other maps."""
    if task.display != "depth" or is_ignored(task, label).all():
        return ""
    low, high = depth_range(task, label)
    return f", {short(low)} to {short(high)} {task.unit}"


def write_panels(
    folder: epath.Path,
    tasks: Sequence[Task],
    predictions: Iterable[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
) -> list[epath.Path]:
    """Writes `<id>.png` for each (example, logits) and returns the paths.

    Of several processes the first does; the others make their part of the predictions.
    """
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for example, logits in predictions:
        if not is_first():
            continue
        path = folder / f"{str(example['id']).replace('/', '_')}.png"
        write_png(path, example_panel(tasks, example, logits))
        paths.append(path)
    return paths
