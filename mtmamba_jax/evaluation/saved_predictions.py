"""Saves a test set's predictions as the files that evaluation tools read: a folder per task.

    semseg/ID.png, human_parts/ID.png    class IDs, 8 bits
    sal/ID.png, edge/ID.png              round(255 * probability), 8 bits
    normals/ID.png                       RGB = round(255 * (normal + 1) / 2)
    depth/ID.mat                         variable `depth`, float32 [h w], in the task's unit

Folders and file formats match the predictions saved by the official code, from which its own scores
and the MATLAB tools for odsF are computed. (The official code truncates levels; here they are
rounded.)
"""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from etils import epath

from mtmamba_jax.devices.processes import fail_together, is_first
from mtmamba_jax.evaluation.evaluate import Prediction
from mtmamba_jax.files.json_files import write_json
from mtmamba_jax.files.paths import file_sizes, path_inside, write_atomically
from mtmamba_jax.tasks.readout import normal_levels, to_levels
from mtmamba_jax.tasks.table import OFFICIAL_NAMES, TASK_SETS, Task

RECORD_FILE = "predictions.json"
"""Records which checkpoint made the predictions; written last, once all of them are complete."""

STARTED_FILE = "incomplete.json"
"""Marks a folder whose predictions are not complete; removed when `RECORD_FILE` is written."""

_MATLAB_HEADER_BYTES = 116


class FileFormat(NamedTuple):
    """How a value is saved: the file's suffix and the function that encodes it."""

    suffix: str
    encode: Callable[[np.ndarray], bytes]


def _encode_png(levels: np.ndarray) -> bytes:
    return cv2.imencode(".png", levels)[1].tobytes()


def _encode_normals(normals: np.ndarray) -> bytes:
    return _encode_png(normal_levels(normals)[..., ::-1])  # OpenCV takes BGR


def _encode_probability(probability: np.ndarray) -> bytes:
    return _encode_png(to_levels(probability))


def _encode_matlab(depth: np.ndarray) -> bytes:
    import scipy.io  # slow to import

    file = io.BytesIO()
    scipy.io.savemat(file, {"depth": depth.astype(np.float32)})
    # scipy writes the time into the text header; a constant one makes equal maps equal files.
    header = b"MATLAB 5.0 MAT-file".ljust(_MATLAB_HEADER_BYTES)
    return header + file.getvalue()[_MATLAB_HEADER_BYTES:]


FORMATS: Mapping[str, FileFormat] = {
    "classes": FileFormat(".png", _encode_png),
    "depth": FileFormat(".mat", _encode_matlab),
    "normals": FileFormat(".png", _encode_normals),
    "probability": FileFormat(".png", _encode_probability),
    "saliency": FileFormat(".png", _encode_probability),
}
"""The file format for each `Task.quantity`."""


def task_folder(task: Task) -> str:
    """Returns the name of a task's folder."""
    return OFFICIAL_NAMES.get(task.name, task.name)


def prediction_path(task: Task, example_id: str) -> str:
    """Returns the path of an image's prediction, relative to the folder of predictions.

    A "/" in an example ID separates folders, as in a dataset of one's own; see `path_inside`.
    """
    suffix = FORMATS[task.quantity].suffix
    return f"{task_folder(task)}/{path_inside(example_id)}{suffix}"


class PredictionWriter:
    """Writes predictions to a folder or bucket; each file is written whole or not at all.

    With several processes each writes its own examples, and the first removes those of an earlier
    run and writes the record.

    Args:
      folder: Destination; predictions that an earlier run wrote there are removed.
      tasks: Tasks whose predictions are written.

    Raises:
      ValueError: If the folder holds files that no run wrote, such as labels.
      OSError: If the folder is not writable.
    """

    def __init__(self, folder: epath.PathLike, tasks: Sequence[Task]):
        self.folder, self._tasks = epath.Path(folder), tasks
        with fail_together(), _explain_failure(self.folder):
            if is_first():
                self._clear()
            for task in tasks:
                (self.folder / task_folder(task)).mkdir(parents=True, exist_ok=True)

    def _clear(self) -> None:
        names = {task_folder(task) for tasks in TASK_SETS.values() for task in tasks}
        files = file_sizes(self.folder) if self.folder.exists() else {}
        old = sorted(file for file in files if file.split("/")[0] in names)
        if old and not files.keys() & {RECORD_FILE, STARTED_FILE}:
            raise ValueError(
                f"{self.folder} holds files that were not written by eval, such as {old[0]}, so "
                "no predictions are written there. Choose another folder with "
                "--save_predictions=FOLDER."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / STARTED_FILE, {"complete": False})
        for file in (RECORD_FILE, *old):
            (self.folder / file).unlink(missing_ok=True)

    def write_each(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Yields the predictions unchanged, each one after it has been written.

        Raises:
          OSError: If a prediction cannot be written.
        """
        for prediction in predictions:
            with _explain_failure(self.folder):
                for task in self._tasks:
                    contents = FORMATS[task.quantity].encode(prediction.values[task.name])
                    file = self.folder / prediction_path(task, prediction.id)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(file, contents)
            yield prediction

    def finish(self, record: Mapping[str, object]) -> None:
        """Writes `RECORD_FILE`. Call it in the first process, after all processes have written.

        Raises:
          OSError: If the record cannot be written.
        """
        with _explain_failure(self.folder):
            write_json(self.folder / RECORD_FILE, record)
            (self.folder / STARTED_FILE).unlink()


@contextlib.contextmanager
def _explain_failure(folder: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"Predictions could not be written to {folder} ({error}). Fix that, or choose another "
            "folder with --save_predictions=FOLDER."
        ) from error
