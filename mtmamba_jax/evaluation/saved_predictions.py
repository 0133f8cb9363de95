"""Predictions of a test set as files that evaluation tools read: a folder a task, a file an image.

    semseg/ID.png, human_parts/ID.png    class numbers, 8 bits
    sal/ID.png, edge/ID.png              round(255 * probability), 8 bits
    normals/ID.png                       RGB = round(255 * (normal + 1) / 2)
    depth/ID.mat                         variable `depth`, float32 [h w], in the task's unit

Folders and forms are those of the official code's saved predictions, which its own scores and the
MATLAB tools for odsF are of. (It cuts levels off where they are rounded here.)
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from etils import epath

from mtmamba_jax.evaluation.evaluate import Prediction
from mtmamba_jax.files.paths import write_atomically
from mtmamba_jax.readout import normal_levels, to_levels
from mtmamba_jax.tasks import Task

FOLDERS: Mapping[str, str] = {"saliency": "sal"}
"""The official name of a task's folder, where it is not the task's."""

RECORD_FILE = "predictions.json"
"""Says what the predictions are of. Not there until all are written."""

_MATLAB_TEXT = 116  # bytes


class Form(NamedTuple):
    """How a value becomes a file: its suffix and its contents."""

    suffix: str
    encode: Callable[[np.ndarray], bytes]


def _png(levels: np.ndarray) -> bytes:
    return cv2.imencode(".png", levels)[1].tobytes()


def _colours(normals: np.ndarray) -> bytes:
    return _png(normal_levels(normals)[..., ::-1])  # OpenCV takes BGR


def _matlab(depth: np.ndarray) -> bytes:
    import scipy.io  # takes long to load

    file = io.BytesIO()
    scipy.io.savemat(file, {"depth": depth.astype(np.float32)})
    # The file begins with a text, in which scipy writes the time: equal maps are equal files here.
    return b"MATLAB 5.0 MAT-file".ljust(_MATLAB_TEXT) + file.getvalue()[_MATLAB_TEXT:]


FORMS: Mapping[str, Form] = {
    "classes": Form(".png", _png),
    "depth": Form(".mat", _matlab),
    "normals": Form(".png", _colours),
    "probability": Form(".png", lambda value: _png(to_levels(value))),
    "saliency": Form(".png", lambda value: _png(to_levels(value))),
}
"""The form of a value, for each `Task.display`."""


def folder_of(task: Task) -> str:
    """Returns the name of a task's folder."""
    return FOLDERS.get(task.name, task.name)


def file_of(task: Task, identity: str) -> str:
    """Returns where an image's prediction is in the folder.

    As in a folder of one's own data, a / in an example's id is a folder. A part that begins with a
    dot, or is empty, gets %2E or % there: nothing is hidden, and nothing leaves the folder.
    """
    parts = (
        f"%2E{part[1:]}" if part.startswith(".") else part or "%" for part in identity.split("/")
    )
    return f"{folder_of(task)}/{'/'.join(parts)}{FORMS[task.display].suffix}"


class Saving:
    """Writes predictions to a folder or a bucket, each file whole or not at all.

    Of several processes each writes its own; the first makes the record.

    Args:
      folder: to write to; what it holds of the same tasks and images is written anew.
      tasks: to write.

    Raises:
      OSError: the folder cannot be written to.
    """

    def __init__(self, folder: epath.PathLike, tasks: Sequence[Task]):
        self.folder, self._tasks = epath.Path(folder), tasks
        with _naming(self.folder):
            for task in tasks:
                (self.folder / folder_of(task)).mkdir(parents=True, exist_ok=True)
            (self.folder / RECORD_FILE).unlink(missing_ok=True)

    def passing(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Yields predictions on, each when it is written.

        Raises:
          OSError: one could not be written.
        """
        for prediction in predictions:
            with _naming(self.folder):
                for task in self._tasks:
                    contents = FORMS[task.display].encode(prediction.values[task.name])
                    file = self.folder / file_of(task, prediction.id)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(file, contents)
            yield prediction

    def finish(self, record: Mapping[str, object]) -> None:
        """Writes `RECORD_FILE`; called by the first process, after all have written theirs.

        Raises:
          OSError: it could not be written.
        """
        with _naming(self.folder):
            write_atomically(
                self.folder / RECORD_FILE, (json.dumps(record, indent=2) + "\n").encode()
            )


@contextlib.contextmanager
def _naming(folder: epath.Path) -> Iterator[None]:
    """Says where and what to do where something cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"Predictions could not be written to {folder} ({error}). Mend that, or give another "
            "folder: --save_predictions=FOLDER."
        ) from error
