"""Predictions for photos: any size and aspect, a picture and the raw array for each task."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import cv2
import numpy as np

from mtmamba_jax.data_pipelines.batch import denormalise, remove_padding
from mtmamba_jax.data_pipelines.transforms import eval_transforms
from mtmamba_jax.readout import to_value
from mtmamba_jax.tasks import Task
from mtmamba_jax.visualization.features import draw_features
from mtmamba_jax.visualization.legend import add_legend
from mtmamba_jax.visualization.render import image_grid, overlay, render_map, write_png

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_STRIP = 256  # rows of a large photo whose logits are in memory at once

Maps = Mapping[str, np.ndarray]
"""{task: map}, with a leading axis of 1."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A photo that gave no prediction, and why."""

    path: pathlib.Path
    reason: str


def find_photos(
    paths: Sequence[pathlib.Path], skip: pathlib.Path
) -> tuple[list[pathlib.Path], list[Failure]]:
    """Returns the photos among files and, with their subfolders, folders, each once.

    Args:
      paths: files and folders.
      skip: folder of predictions, which are no photos.

    Returns:
      The photos, and the paths that do not exist, hold none or lie in `skip`.
    """
    photos: dict[pathlib.Path, pathlib.Path] = {}
    failures = []
    for path in paths:
        if skip.resolve() in (path.resolve(), *path.resolve().parents):
            failures.append(Failure(path, "lies in the output folder; choose another --output"))
            continue
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        if path.is_dir():
            found = [p for p in found if p.suffix.lower() in SUFFIXES]
            found = [p for p in found if skip.resolve() not in p.resolve().parents]
            if not found:
                failures.append(Failure(path, f"holds no photo ({' '.join(SUFFIXES)})"))
        elif not path.exists():
            failures.append(Failure(path, "does not exist"))
            continue
        photos |= {p.resolve(): p for p in found}
    return list(photos.values()), failures


def predict_photos(
    photos: Sequence[pathlib.Path],
    tasks: Sequence[Task],
    predict: Callable[[np.ndarray], tuple[Maps, Maps]],
    folder: pathlib.Path,
    *,
    size: tuple[int, int],
    with_overlay: bool = False,
) -> Iterator[pathlib.Path | Failure]:
    """Predicts and writes one folder for each photo; yields it, or why there is none.

    A folder holds `<task>.png`, `<task>.npy` (`readout.to_value` at the photo's size),
    `panel.png` and, `with_overlay`, `overlay.png`: the first task of classes over the photo; where
    `predict` gives activations, `features.png` shows them.

    Args:
      photos: files to read.
      tasks: what `predict` predicts.
      predict: images [1 h w 3], normalised -> {task: logits [1 h w channels]}, and {task:
        activation [1 h/4 w/4]} or {}; such as a step of `features.create_feature_step`.
      folder: to write in.
      size: height and width that photos are fitted into, keeping their aspect, as in training.
      with_overlay: write `overlay.png`.
    """
    names = _unique_names(photos)
    transforms = eval_transforms((), size)
    for path in photos:
        photo = read_photo(path)
        if isinstance(photo, Failure):
            yield photo
            continue
        example = {"image": fit(photo, size), "id": str(path)}
        for transform in transforms:
            example = transform(example, np.random.default_rng(0))  # draws nothing
        logits, activations = predict(example["image"][None])
        values = {}
        for task in tasks:
            cropped = remove_padding(np.asarray(logits[task.name][0]), example["size"])
            values[task.name] = enlarge(task, cropped, photo.shape[:2])
        written = _write(folder / names[path], photo, tasks, values, with_overlay)
        if activations:
            given = denormalise(example["image"])
            maps = {task.name: activations[task.name][0] for task in tasks}
            write_png(written / "features.png", draw_features(given, maps, example["size"]))
        yield written


def overlay_task(tasks: Sequence[Task]) -> Task:
    """Returns the task that `overlay.png` shows.

    Raises:
      ValueError: there is none with classes.
    """
    for task in tasks:
        if task.display == "classes":
            return task
    raise ValueError("--overlay draws classes, but no task of this run has any.")


def read_photo(path: pathlib.Path) -> np.ndarray | Failure:
    """Returns a photo as uint8 RGB [h w 3], turned as its EXIF says, or why it cannot be read."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        return Failure(path, error.strerror or str(error))
    if not data.size:
        return Failure(path, "the file is empty")
    try:
        photo = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        return Failure(path, f"not decodable: {error.err}")
    if photo is None:
        return Failure(path, "not an image, or a damaged one")
    return cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)


def fit(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a photo to the largest of its aspect that fits into `size` (height, width)."""
    height, width = photo.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(
        photo, fitted, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )


def enlarge(task: Task, logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes logits [h w channels] bilinearly to `size` and reads them with `to_value`.

    Strip by strip: 40 classes of a 12-megapixel photo would take 2 GB at once.
    """
    low, high, weight = _neighbours(logits.shape[1], size[1])
    wide = logits[:, low] * (1 - weight)[:, None] + logits[:, high] * weight[:, None]
    low, high, weight = _neighbours(logits.shape[0], size[0])
    weight = weight[:, None, None]
    strips = []
    for start in range(0, size[0], _STRIP):
        rows = slice(start, start + _STRIP)
        strip = wide[low[rows]] * (1 - weight[rows]) + wide[high[rows]] * weight[rows]
        strips.append(to_value(task, strip))
    return np.concatenate(strips)


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel: the two old ones around its centre and the weight of the second."""
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(position).astype(int)
    return low, np.minimum(low + 1, old - 1), (position - low).astype(np.float32)


def _write(folder, photo, tasks, values, with_overlay) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"photo": photo}
    for task in tasks:
        value = values[task.name]
        pictures[task.name] = render_map(task, value)
        np.save(folder / f"{task.name}.npy", value)
        write_png(folder / f"{task.name}.png", pictures[task.name])
    if with_overlay:
        pictures["overlay"] = overlay(photo, pictures[overlay_task(tasks).name])
        write_png(folder / "overlay.png", pictures["overlay"])
    maps = {name: [value] for name, value in values.items()}
    write_png(folder / "panel.png", add_legend(image_grid([pictures]), tasks, maps))
    return folder


def _unique_names(photos: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Gives each photo a folder name: its stem, with a number where stems are alike."""
    names: dict[pathlib.Path, str] = {}
    taken: set[str] = set()
    for path in photos:
        name, number = path.stem, 2
        while name in taken:
            name, number = f"{path.stem}_{number}", number + 1
        taken.add(name)
        names[path] = name
    return names
