"""Folders of saved predictions hold one run's files, and never replace a person's own."""

import json

import cv2
import numpy as np
import pytest
from etils import epath

from mtmamba_jax.evaluation.evaluate import Prediction
from mtmamba_jax.evaluation.saved_predictions import (
    FORMATS,
    PredictionWriter,
    prediction_path,
    task_folder,
)
from mtmamba_jax.tasks.readout import to_value
from mtmamba_jax.tasks.table import DEPTH, HUMAN_PARTS, PASCAL_CONTEXT, SALIENCY

VALUES = {"depth": np.ones((2, 3), np.float32), "saliency": np.zeros((2, 3), np.float32)}


def write(folder, tasks, *names, finish=True):
    writer = PredictionWriter(folder, tasks)
    for _ in writer.write_each(Prediction(name, VALUES, {}) for name in names):
        pass
    if finish:
        writer.finish({"images": len(names)})
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("finish", [True, False], ids=["complete", "interrupted"])
def test_predictions_of_an_earlier_run_are_removed(tmp_path, finish):
    write(tmp_path, (DEPTH, SALIENCY), "old", "a/old", finish=finish)
    (tmp_path / "notes.txt").write_text("mine")
    assert write(tmp_path, (SALIENCY,), "new") == ["notes.txt", "predictions.json", "sal/new.png"]
    record = json.loads((tmp_path / "predictions.json").read_text())
    assert record == {"images": 1, "files": ["sal/new.png"]}


@pytest.mark.parametrize("finish", [True, False], ids=["complete", "interrupted"])
@pytest.mark.parametrize("name", ["depth/notes.txt", "semseg/label.png", "normals/a/b.png"])
def test_files_of_a_person_in_folders_of_tasks_are_refused_and_kept(tmp_path, name, finish):
    write(tmp_path, (DEPTH,), "old", finish=finish)
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True, parents=True)
    mine.write_text("mine")
    with pytest.raises(ValueError, match=rf"not written by eval, such as {name}.*Move them, or ch"):
        write(tmp_path, (DEPTH,), "new")
    assert mine.read_text() == "mine"
    assert (tmp_path / "depth" / "old.mat").exists()
    mine.unlink()
    assert "depth/new.mat" in write(tmp_path, (DEPTH,), "new")


def test_a_map_of_a_person_beside_complete_predictions_is_refused(tmp_path):
    write(tmp_path, (DEPTH,), "old")
    (tmp_path / "depth" / "measured.mat").write_text("mine")
    with pytest.raises(ValueError, match=r"such as depth/measured\.mat"):
        PredictionWriter(tmp_path, (DEPTH,))


def test_a_run_interrupted_while_it_removed_an_earlier_one_is_replaced(tmp_path, monkeypatch):
    write(tmp_path, (DEPTH, SALIENCY), "old")
    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(tmp_path)), "unlink", interrupt)
        with pytest.raises(KeyboardInterrupt):
            PredictionWriter(tmp_path, (SALIENCY,))
    (tmp_path / "sal" / ".12345678.partial").write_bytes(b"killed")
    (tmp_path / "sal" / ".DS_Store").write_bytes(b"")
    wanted = ["depth/new.mat", "predictions.json", "sal/.DS_Store"]
    assert write(tmp_path, (DEPTH,), "new") == wanted


def interrupt(path, missing_ok=False):
    raise KeyboardInterrupt


@pytest.mark.parametrize("task", [SALIENCY, HUMAN_PARTS])
def test_a_prediction_that_is_not_finite_is_refused_with_its_image(tmp_path, task):
    logits = np.full((2, 3, task.channels), np.nan, np.float32)
    values = VALUES | {task.name: to_value(task, logits)}
    writer = PredictionWriter(tmp_path, (DEPTH, task))
    message = f"{task.name} of image a is NaN or infinite at 6 pixels"
    with pytest.raises(RuntimeError, match=message):
        next(writer.write_each([Prediction("a", values, {})]))
    assert not list(tmp_path.glob("*/*.*"))


def test_a_folder_of_labels_is_refused_and_unchanged(tmp_path):
    label = tmp_path / "depth" / "a.npy"
    label.parent.mkdir()
    label.write_bytes(b"measured")
    with pytest.raises(ValueError, match=r"not written by eval, such as depth/a\.npy.*choose an"):
        PredictionWriter(tmp_path, (SALIENCY,))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [label]


def test_folders_have_the_official_names():
    folders = [task_folder(task) for task in PASCAL_CONTEXT]
    assert folders == ["semseg", "human_parts", "sal", "edge", "normals"]


@pytest.mark.parametrize(
    ("quantity", "value", "wanted"),
    [
        ("classes", np.array([[0, 39, 20]], np.uint8), [[0, 39, 20]]),
        ("probability", np.array([[0.0, 0.5, 0.999, 1.0]], np.float32), [[0, 128, 255, 255]]),
        ("saliency", np.array([[0.0, 0.1, 1.0]], np.float32), [[0, 26, 255]]),
        # As in a folder of labels, in RGB; OpenCV reads BGR.
        ("normals", np.array([[[1.0, 0.0, -1.0]]], np.float32), [[[0, 128, 255]]]),
    ],
)
def test_values_are_saved_as_levels(quantity, value, wanted):
    file_format = FORMATS[quantity]
    assert file_format.suffix == ".png"
    levels = cv2.imdecode(np.frombuffer(file_format.encode(value), np.uint8), cv2.IMREAD_UNCHANGED)
    assert levels.dtype == np.uint8
    assert levels.tolist() == wanted


@pytest.mark.parametrize(
    ("identity", "file"),
    [
        ("2008_000002", "2008_000002"),
        ("val/000001", "val/000001"),
        (".hidden", "_.hidden"),
        ("../../up", "_../_../up"),
        ("/root/a.b", "_/root/a.b"),
        ("_.hidden", "__.hidden"),
    ],
)
def test_a_file_lies_below_its_folder_and_is_not_hidden(identity, file):
    assert prediction_path(PASCAL_CONTEXT[2], identity) == f"sal/{file}.png"
