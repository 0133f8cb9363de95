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
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from etils import epath

from mtmamba_jax.devices.processes import fail_together, gather_names, is_first
from mtmamba_jax.evaluation.evaluate import Prediction
from mtmamba_jax.files.json_files import write_json
from mtmamba_jax.files.paths import (
    DESKTOP_FILES,
    explain,
    file_sizes,
    path_inside,
    write_atomically,
)
from mtmamba_jax.tasks.readout import normal_levels, to_levels
from mtmamba_jax.tasks.table import OFFICIAL_NAMES, TASK_SETS, Task

RECORD_FILE = "predictions.json"
"""Names the predictions and the checkpoint that made them; written last, once all are complete."""

STARTED_FILE = "incomplete.json"
"""Marks a folder whose predictions are not complete; removed when `RECORD_FILE` is written.

Its `files` are an earlier run's, and `suffixes` is the suffix of new ones in each task's folder.
"""

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
      ValueError: If folders of tasks hold files that no run wrote, such as labels.
      OSError: If the folder is not writable.
    """

    def __init__(self, folder: epath.PathLike, tasks: Sequence[Task]):
        self.folder, self._tasks = epath.Path(folder), tasks
        self._written: list[str] = []
        with fail_together(), _explain_failure(self.folder):
            if is_first():
                self._clear()
            for task in tasks:
                (self.folder / task_folder(task)).mkdir(parents=True, exist_ok=True)

    def _clear(self) -> None:
        names = {task_folder(task) for tasks in TASK_SETS.values() for task in tasks}
        files = file_sizes(self.folder) if self.folder.exists() else {}
        files = sorted(file for file in files if file.split("/")[0] in names)
        complete, started = (_read_record(self.folder / f) for f in (RECORD_FILE, STARTED_FILE))
        known = {*complete.get("files", ()), *started.get("files", ())}
        suffixes = started.get("suffixes", {})
        old = [file for file in files if file in known or _is_prediction(file, suffixes)]
        others = {file for file in files if file.split("/")[-1] not in DESKTOP_FILES} - {*old}
        if others:
            raise ValueError(
                f"{self.folder} holds files that were not written by eval, such as {min(others)}, "
                "so no predictions are written there. Move them, or choose another folder with "
                "--save_predictions=FOLDER."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        suffixes = {task_folder(task): FORMATS[task.quantity].suffix for task in self._tasks}
        write_json(self.folder / STARTED_FILE, {"files": old, "suffixes": suffixes})
        for file in (RECORD_FILE, *old):
            (self.folder / file).unlink(missing_ok=True)

    def write_each(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Yields the predictions unchanged, each one after it has been written.

        Raises:
          OSError: If a prediction cannot be written.
          RuntimeError: If a prediction is NaN or infinite, which a PNG cannot hold.
        """
        for prediction in predictions:
            for task in self._tasks:
                prediction.check_finite(task.name, "--save_predictions")
            with _explain_failure(self.folder):
                for task in self._tasks:
                    contents = FORMATS[task.quantity].encode(prediction.values[task.name])
                    name = prediction_path(task, prediction.id)
                    file = self.folder / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(file, contents)
                    self._written.append(name)
            yield prediction

    def finish(self, record: Mapping[str, object]) -> None:
        """Writes `RECORD_FILE`; each process must call it, after all processes have written.

        Raises:
          OSError: If the record cannot be written.
        """
        files = gather_names(self._written)
        if is_first():
            with _explain_failure(self.folder):
                write_json(self.folder / RECORD_FILE, {**record, "files": sorted(files)})
                (self.folder / STARTED_FILE).unlink()


def _read_record(path: epath.Path) -> dict[str, Any]:
    """Returns a record, {} if there is none or it is damaged."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_prediction(file: str, suffixes: Mapping[str, str]) -> bool:
    """Returns whether an interrupted run of these suffixes by folder may have written a file."""
    suffix = suffixes.get(file.split("/")[0])
    return suffix is not None and file.endswith((suffix, ".partial"))


@contextlib.contextmanager
def _explain_failure(folder: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"Predictions could not be written to {folder}"
        raise explain(
            error, what, "choose another folder with --save_predictions=FOLDER"
        ) from error
