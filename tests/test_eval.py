"""The command eval: predictions as files, contours by the boundary benchmark."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import scipy.io

from mtmamba_jax import cli
from mtmamba_jax.boundaries.__main__ import main as score_folders
from mtmamba_jax.data_pipelines.sources import open_source
from mtmamba_jax.evaluate import Evaluator
from mtmamba_jax.training import run as runs
from mtmamba_jax.training import state
from mtmamba_jax.training.loop import train
from mtmamba_jax.visualize import to_value
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config
from tests.training.test_processes import ROOT, finish, free_port

SIZE = (32, 64)
NAMES = [f"val/{i:06d}" for i in range(5)]


@pytest.fixture(scope="module", autouse=True)
def pixel_model():
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (state, "build"),
            (state, "abstract_build"),
            (runs, "abstract_build"),
        ):
            patch.setattr(module, name, build_pixel_model)
        yield


def trained(folder, **settings):
    train(tiny_config(tasks__names="()", train__steps="8", **settings), folder)
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def evaluated(workdir):
    """The work directory after all that eval does."""
    assert cli.main(["eval", f"--workdir={workdir}", "--save_predictions", "--odsf"]) == 0
    return workdir


def labels_of(workdir, folder):
    """Writes the test set's edge labels as files, and returns the other labels."""
    run = runs.load_run(workdir, "best")
    source = open_source(run.config.data, run.tasks, "test")
    for example in source:
        path = folder / f"{example['id']}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), example["edge"][..., 0].astype(np.uint8))


def test_odsf_is_that_of_the_saved_predictions(evaluated, tmp_path):
    labels_of(evaluated, tmp_path / "labels")
    assert (
        score_folders(
            [
                "--dataset=pascal_context",  # whose distance is taken where none is published
                "--reading=contours",
                "--workers=0",
                f"--predictions={evaluated / 'predictions_best' / 'edge'}",
                f"--labels={tmp_path / 'labels'}",
                f"--output={tmp_path / 'out'}",
            ]
        )
        == 0
    )
    ours, theirs = (folder for folder in (evaluated / "boundaries_best", tmp_path / "out"))
    assert (ours / "curve.csv").read_text() == (theirs / "curve.csv").read_text()
    found, wanted = (json.loads((f / "boundaries.json").read_text()) for f in (ours, theirs))
    assert found["scores"] == wanted["scores"]
    assert found["images"] == wanted["images"] == len(NAMES)
    assert 0 < found["scores"]["odsF"] < 100
