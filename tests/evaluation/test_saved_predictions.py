"""Folders of saved predictions hold one run's files, and never replace a person's own."""

import json

import numpy as np
import pytest

from mtmamba_jax.evaluation.evaluate import Prediction
from mtmamba_jax.evaluation.saved_predictions import PredictionWriter
from mtmamba_jax.tasks.table import DEPTH, SALIENCY

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
    assert json.loads((tmp_path / "predictions.json").read_text()) == {"images": 1}


def test_a_folder_of_labels_is_refused_and_unchanged(tmp_path):
    label = tmp_path / "depth" / "a.npy"
    label.parent.mkdir()
    label.write_bytes(b"measured")
    with pytest.raises(ValueError, match=r"not written by eval, such as depth/a\.npy.*Choose ano"):
        PredictionWriter(tmp_path, (SALIENCY,))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [label]
