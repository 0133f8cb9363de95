"""Draws panels: one image with the prediction, label and error of every task."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from mtmamba_jax.data_pipelines.batch import denormalise, remove_padding
from mtmamba_jax.devices.processes import is_first
from mtmamba_jax.files.paths import path_inside, unique_name
from mtmamba_jax.messages import short
from mtmamba_jax.tasks.readout import is_ignored, label_value, to_value
from mtmamba_jax.tasks.table import Task
from mtmamba_jax.visualization.error_maps import render_error_map
from mtmamba_jax.visualization.legend import add_legend
from mtmamba_jax.visualization.render import depth_range, image_grid, render_map, write_png

_LONGEST_NAME = 60  # characters, of up to 4 bytes each; a file's name has at most 255 bytes


def example_panel(
    tasks: Sequence[Task],
    example: Mapping[str, np.ndarray],
    logits: Mapping[str, Float[np.ndarray, "h w channels"]],
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Draws a test image with its predictions, and below them the labels and errors.

    The example is one of a batch, without the batch axis. Labels on a finer grid are drawn at the
    image's size, by skipping the pixels in between.
    """
    size = tuple(example["size"].tolist())
    image = remove_padding(denormalise(example["images"]), size)
    blank = np.full((*size, 3), 255, np.uint8)
    predictions, labels, errors = {"image": image}, {"": blank}, {"": blank}
    maps = {}
    for task in tasks:
        label = example[task.name]
        step = len(label) // len(example["images"])
        label = remove_padding(label_value(task, label[::step, ::step]), size)
        value = remove_padding(np.asarray(to_value(task, logits[task.name])), size)
        predictions[f"{task.name}: predicted"] = render_map(task, value, like=label)
        labels[f"{task.name}: true{_describe_range(task, label)}"] = render_map(task, label)
        maps[task.name] = (value, label)
        meaning, error = render_error_map(task, value, label)
        errors[f"{task.name}: {meaning}"] = error
    return add_legend(image_grid([predictions, labels, errors]), tasks, maps)


def _describe_range(task: Task, label: np.ndarray) -> str:
    """Returns the range that the colours of a depth map span, or ""."""
    if task.quantity != "depth" or is_ignored(task, label).all():
        return ""
    low, high = depth_range(task, label)
    return f", {short(low)} to {short(high)} {task.unit}"


def write_panels(
    folder: epath.Path,
    tasks: Sequence[Task],
    predictions: Iterable[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
) -> list[epath.Path]:
    """Writes `<id>.png` for each pair of an example and its logits; returns the paths.

    A "/" in an ID becomes "_". Panels of an earlier run are removed once all are written.
    With several processes the first one writes; the others only compute their part.
    """
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for example, logits in predictions:
        if not is_first():
            continue
        name = path_inside(str(example["id"]).replace("/", "_")[-_LONGEST_NAME:])
        path = folder / f"{unique_name(name, {path.stem for path in paths})}.png"
        write_png(path, example_panel(tasks, example, logits))
        paths.append(path)
    if is_first():
        for old in set(folder.glob("*.png")) - set(paths):
            old.unlink()
    return paths
