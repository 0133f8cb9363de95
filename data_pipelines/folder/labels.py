"""Reads and checks the label files of a folder of your own data (`folder/source.py`)."""

import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int, Num

from mtmamba_jax.data_pipelines import read_files
from mtmamba_jax.data_pipelines.read_files import DataError, Size
from mtmamba_jax.tasks.table import Task

# A unit vector in 8 bits is within 0.01 of length 1; interpolation and JPEG shorten it.
_LENGTHS = (0.8, 1.2)
_NO_DIRECTION = 0.5
_LARGEST = 65535  # of 16 bits


def label_suffixes(task: Task) -> tuple[str, ...]:
    """Returns the file suffixes that a task's labels may have."""
    return _FORMATS.get(task.name, _CLASSES)[0]


def read_label(task: Task, path: pathlib.Path, size: Size) -> Num[np.ndarray, "h w c"]:
    """Reads a label as it is in a raw example (`batch.py`); a `size` of None accepts any size.

    Raises:
      DataError: If the file is unreadable, has another format or size, or contains invalid values.
    """
    return _FORMATS.get(task.name, _CLASSES)[1](task, path, size)


def _read_classes(task: Task, path: pathlib.Path, size: Size) -> Int[np.ndarray, "h w 1"]:
    count = task.num_classes
    wanted = f"0 to {count - 1}, the IDs of the run's {count} classes, and 255, not labelled"
    if not task.class_names:
        wanted = "0, 1 on boundaries, and 255, not labelled"
    return read_files.to_class_ids(
        read_files.class_id_table(count), read_files.read_grey(path, size), path, wanted
    )


def _read_depth(task: Task, path: pathlib.Path, size: Size) -> Float[np.ndarray, "h w 1"]:
    if path.suffix.lower() == ".npy":
        return read_files.read_depth(path, size, task.ignore)
    levels = read_files.read_grey(path, size)
    if levels.dtype != np.uint16:
        raise DataError(
            f"{path} has 8 bits, wanted 16: millimetres. Save it as uint16, or metres as .npy."
        )
    unmeasured = np.count_nonzero(levels == _LARGEST)
    if unmeasured:
        raise DataError(
            f"{path} has {unmeasured} values of {_LARGEST}, with which many sensors mark pixels "
            "without a measurement. Write 0 there; if 65.535 m was measured, save metres as .npy."
        )
    metres = levels.astype(np.float32) / 1000
    return np.where(levels == 0, np.float32(task.ignore), metres)[..., None]


def _read_normals(task: Task, path: pathlib.Path, size: Size) -> Float[np.ndarray, "h w 3"]:
    normals = read_files.read_normals(path, size)
    length = np.linalg.norm(normals, axis=-1)
    drawn = (normals != -1).any(-1)
    unit = (length >= _LENGTHS[0]) & (length <= _LENGTHS[1])
    if (drawn & unit).sum() < 0.5 * drawn.sum():
        raise DataError(
            f"{path} holds no unit vectors: their length is not 1 at most pixels. Wanted "
            "RGB = (normal + 1) / 2 * 255."
        )
    labelled = drawn & (length >= _NO_DIRECTION)
    if (normals[..., 2][labelled] < 0).sum() > 0.5 * labelled.sum():
        raise DataError(
            f"{path}: most normals point away from the camera, which cannot see such surfaces. "
            "Wanted x right, y up, z towards the camera: blue above 127."
        )
    return np.where(labelled[..., None], normals / length[..., None], np.float32(task.ignore))


_Reader = Callable[[Task, pathlib.Path, Size], np.ndarray]
_FORMATS: Mapping[str, tuple[tuple[str, ...], _Reader]] = {
    "depth": ((".npy", ".png"), _read_depth),
    "normals": ((".png",), _read_normals),
}
_CLASSES: tuple[tuple[str, ...], _Reader] = ((".png",), _read_classes)
