"""Predicts files of photos: finds and reads them, and writes one folder for each."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from mtmamba_jax.evaluation.predictor import Predictor
from mtmamba_jax.tasks.table import Task
from mtmamba_jax.visualization.legend import add_legend
from mtmamba_jax.visualization.render import image_grid, overlay, render_map, write_png

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclasses.dataclass(frozen=True)
class Failure:
    """A photo without a prediction, and the reason."""

    path: pathlib.Path
    reason: str


def find_photos(
    paths: Sequence[pathlib.Path], skip: pathlib.Path
) -> tuple[list[pathlib.Path], list[Failure]]:
    """Finds photos, each once.

    Args:
      paths: Files, and folders to search with their subfolders.
      skip: Folder of predictions, which are not photos.

    Returns:
      The photos, and the paths that do not exist, hold no photo or lie in `skip`.
    """
    photos: dict[pathlib.Path, pathlib.Path] = {}
    failures = []
    skip = skip.resolve()
    for path in paths:
        found = []
        if path.resolve().is_relative_to(skip):
            failures.append(Failure(path, "lies in the output folder; choose another --output"))
        elif path.is_dir():
            found = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES]
            found = [p for p in found if not p.resolve().is_relative_to(skip)]
            if not found:
                failures.append(Failure(path, f"holds no photo ({' '.join(SUFFIXES)})"))
        elif path.exists():
            found = [path]
        else:
            failures.append(Failure(path, "does not exist"))
        photos |= {p.resolve(): p for p in found}
    return list(photos.values()), failures


def predict_photos(
    photos: Sequence[pathlib.Path],
    predictor: Predictor,
    folder: pathlib.Path,
    *,
    with_overlay: bool = False,
    with_features: bool = False,
) -> Iterator[pathlib.Path | Failure]:
    """Predicts photos and writes a folder for each to `folder`.

    It holds `<task>.npy` (the map, see `Predictor.__call__`), `<task>.png`, `panel.png` and,
    if asked for, `overlay.png` (the first task of classes over the photo) and `features.png`.

    Yields:
      The folder of each photo, or why there is none.
    """
    for path, name in zip(photos, _unique_names(photos), strict=True):
        photo = read_photo(path)
        if isinstance(photo, Failure):
            yield photo
            continue
        maps, features = (
            predictor.with_features(photo) if with_features else (predictor(photo), None)
        )
        written = _write(folder / name, photo, predictor.tasks, maps, with_overlay)
        if features is not None:
            write_png(written / "features.png", features)
        yield written


def overlay_task(tasks: Sequence[Task]) -> Task:
    """Returns the task that `overlay.png` shows.

    Raises:
      ValueError: If no task has classes.
    """
    for task in tasks:
        if task.quantity == "classes":
            return task
    raise ValueError("--overlay draws classes, but no task of this run has any.")


def read_photo(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"] | Failure:
    """Returns a photo as RGB, rotated as its EXIF data says, or why it cannot be read."""
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


def _write(
    folder: pathlib.Path,
    photo: np.ndarray,
    tasks: Sequence[Task],
    maps: Mapping[str, np.ndarray],
    with_overlay: bool,
) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    images = {"photo": photo}
    for task in tasks:
        images[task.name] = render_map(task, maps[task.name])
        np.save(folder / f"{task.name}.npy", maps[task.name])
        write_png(folder / f"{task.name}.png", images[task.name])
    if with_overlay:
        images["overlay"] = overlay(photo, images[overlay_task(tasks).name])
        write_png(folder / "overlay.png", images["overlay"])
    shown = {name: [value] for name, value in maps.items()}
    write_png(folder / "panel.png", add_legend(image_grid([images]), tasks, shown))
    return folder


def _unique_names(photos: Sequence[pathlib.Path]) -> list[str]:
    """Returns a folder name for each photo: its stem, with a number for repeated stems."""
    names: dict[str, None] = {}  # an ordered set
    for path in photos:
        name, number = path.stem, 2
        while name in names:
            name, number = f"{path.stem}_{number}", number + 1
        names[name] = None
    return list(names)
