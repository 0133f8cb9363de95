"""Predicts files of photos, and writes one folder for each."""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from mtmamba_jax.evaluation.photo_files import Failure, Note, read_photo
from mtmamba_jax.evaluation.predictor import Predictor
from mtmamba_jax.evaluation.resizing import enlarged_strips
from mtmamba_jax.files.json_files import write_json
from mtmamba_jax.files.paths import DESKTOP_FILES, path_inside, replacing, unique_name
from mtmamba_jax.tasks.readout import to_value
from mtmamba_jax.tasks.table import Task
from mtmamba_jax.visualization.legend import add_legend
from mtmamba_jax.visualization.render import image_grid, overlay, render_map, thumbnail, write_png

RECORD_FILE = "photo.json"
"""Names the photo that a folder's predictions are of, and the folder's files."""


def predict_photos(
    photos: Sequence[pathlib.Path],
    predictor: Predictor,
    folder: pathlib.Path,
    *,
    origin: Mapping[str, object],
    bits: int | None = None,
    with_overlay: bool = False,
    with_features: bool = False,
) -> Iterator[pathlib.Path | Failure | Note]:
    """Predicts photos and writes a folder for each to `folder`, replacing one of an earlier call.

    It holds `<task>.npy` (the map, see `Predictor.__call__`), `<task>.png`, `panel.png`,
    `RECORD_FILE` with the photo's path and `origin` and, if asked for, `overlay.png` (the first
    task of classes over the photo) and `features.png`. It appears once all are written. Beside the
    photo, only one task's image and a few rows of its map are in memory. `bits` is as in
    `read_photo`.

    Yields:
      The folder of each photo, or why there is none; before it, what was assumed about the photo.

    Raises:
      OSError: If a folder cannot be written, for instance because the disk is full.
    """
    for path, name in zip(photos, _folder_names(photos), strict=True):
        target = folder / name
        reason = _why_not_replaceable(target)
        read = Failure(path, reason) if reason else read_photo(path, bits)
        if isinstance(read, Failure):
            yield read
            continue
        if read.note:
            yield read.note
        photo = read.pixels
        logits, features = predictor.logits(photo, with_features=with_features)
        if bad := [name for name, each in logits.items() if not np.isfinite(each).all()]:
            what = f"NaN or infinite values in the predicted {', '.join(bad)}"
            yield Failure(path, f"{what}; try another --checkpoint")
            continue
        small = {t.name: np.asarray(to_value(t, logits[t.name])) for t in predictor.tasks}
        needed = sum(_full_size(value, photo) for value in small.values())
        what = f"The prediction of {path}"
        with replacing(target, needed, what, "give another --output") as new:
            new.mkdir()
            _write(new, photo, predictor.tasks, logits, small, with_overlay)
            if features is not None:
                write_png(new / "features.png", features)
            files = sorted(file.name for file in new.iterdir())
            record = {"photo": os.path.abspath(path), **origin, "files": [*files, RECORD_FILE]}
            write_json(new / RECORD_FILE, record)
        yield target


def overlay_task(tasks: Sequence[Task]) -> Task:
    """Returns the task that `overlay.png` shows.

    Raises:
      ValueError: If no task has classes.
    """
    for task in tasks:
        if task.quantity == "classes":
            return task
    raise ValueError("--overlay draws classes, but no task of this run has any.")


def _folder_names(photos: Sequence[pathlib.Path]) -> list[str]:
    """Returns a folder name for each photo: its stem, with a number for repeated stems."""
    names: dict[str, None] = {}  # an ordered set
    for path in photos:
        names[unique_name(path_inside(path.stem), names)] = None
    return list(names)


def _why_not_replaceable(folder: pathlib.Path) -> str:
    """Returns why predictions cannot replace a folder, "" if they can.

    They replace earlier predictions, which name their files, and nothing else.
    """
    if folder.is_dir():
        try:
            known = {*json.loads((folder / RECORD_FILE).read_bytes())["files"], *DESKTOP_FILES}
        except (OSError, ValueError, KeyError, TypeError):
            known = DESKTOP_FILES
        others = sorted({file.name for file in folder.iterdir()} - known)
    else:
        others = [folder] if folder.exists() or folder.is_symlink() else []
    if not others:
        return ""
    advice = "Move it, or give another --output"
    return f"{folder} is not replaced, because predict did not write {others[0]}. {advice}"


def _full_size(value: np.ndarray, photo: np.ndarray) -> int:
    """Returns the bytes of a map at a photo's size."""
    return value.nbytes * photo[..., 0].size // (value.shape[0] * value.shape[1])


def _write(
    folder: pathlib.Path,
    photo: UInt8[np.ndarray, "h w 3"],
    tasks: Sequence[Task],
    logits: Mapping[str, np.ndarray],
    small: Mapping[str, np.ndarray],
    with_overlay: bool,
) -> None:
    images, last = {"photo": thumbnail(photo)}, {}
    for task in tasks:
        file = folder / f"{task.name}.npy"
        rendered = _write_map(file, task, logits[task.name], photo.shape[:2], small[task.name])
        write_png(file.with_suffix(".png"), rendered)
        images[task.name] = thumbnail(rendered)
        if with_overlay and task == overlay_task(tasks):
            rendered = overlay(photo, rendered)
            write_png(folder / "overlay.png", rendered)
            last = {"overlay": thumbnail(rendered)}
    shown = {name: [value] for name, value in small.items()}
    write_png(folder / "panel.png", add_legend(image_grid([images | last]), tasks, shown))


def _write_map(
    path: pathlib.Path,
    task: Task,
    logits: Float[np.ndarray, "h w channels"],
    size: tuple[int, ...],
    like: Shaped[np.ndarray, "..."],
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Writes the map of a photo as .npy, a few rows at a time, and returns it rendered."""
    rendered, row = np.empty((*size, 3), np.uint8), 0
    with path.open("wb") as file:
        for strip in enlarged_strips(task, logits, size):
            if not row:
                descr = np.lib.format.dtype_to_descr(strip.dtype)
                shape = (*size, *strip.shape[2:])
                header = {"descr": descr, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(strip.tobytes())
            rendered[row : row + len(strip)] = render_map(task, strip, like=like)
            row += len(strip)
    return rendered
