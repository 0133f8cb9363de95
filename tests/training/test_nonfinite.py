"""Losses that are not finite: what a run says and saves, and what skipping them changes."""

import contextlib

import jax
import numpy as np
import pytest

from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.data_pipelines import sources
from mtmamba_jax.data_pipelines.sources import open_source
from mtmamba_jax.devices.sharding import create_mesh, put_batch
from mtmamba_jax.tasks.table import DEPTH, select
from mtmamba_jax.training import nonfinite, state
from mtmamba_jax.training.batches import open_batches
from mtmamba_jax.training.nonfinite import NonFiniteError
from mtmamba_jax.training.optimizer import create_optimizer
from mtmamba_jax.training.report import read_metrics
from mtmamba_jax.training.state import create_state
from mtmamba_jax.training.step import create_train_step
from mtmamba_jax.training.train import train
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config

SPOILED = "train/000005"


@pytest.fixture(autouse=True)
def pixel_model(monkeypatch):
    monkeypatch.setattr(state, "build", build_pixel_model)


class SpoiledScenes(sources.SyntheticScenes):
    """Scenes of which one has a broken depth."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        if example["id"] == SPOILED:
            example["depth"][...] = np.inf
        return example


class WorseScenes(sources.SyntheticScenes):
    """Scenes whose depth is broken wherever the model learns from it."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        if example["id"].startswith("train"):
            example["depth"][...] = np.inf
        return example


class UnlabelledScenes(sources.SyntheticScenes):
    """Scenes without a depth wherever the model learns from it."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        if example["id"].startswith("train"):
            example["depth"][...] = DEPTH.ignore
        return example


def spoiled_steps(config):
    """Returns the steps whose batch holds the broken example."""
    tasks = select(config.tasks.set, config.tasks.names)
    source = open_source(config.data, tasks, "train")
    with contextlib.closing(open_batches(config, source)) as batches:
        ids = [next(batches)["id"] for _ in range(config.train.steps)]
    return [step for step, names in enumerate(ids, 1) if SPOILED in names]


def test_a_nonfinite_loss_stops_the_run_and_skipping_resumes_it(tmp_path, monkeypatch, capsys):
    first, *others = spoiled_steps(tiny_config())
    assert first > 3, "the step is to come after a checkpoint"
    monkeypatch.setattr(sources, "SyntheticScenes", SpoiledScenes)
    with pytest.raises(NonFiniteError) as error:
        train(tiny_config(), tmp_path)
    message = str(error.value)
    assert f"Step {first}: not finite: " in message
    assert "loss/depth" in message
    assert "loss/semseg" not in message
    assert SPOILED in message
    saved = (first - 1) // 2 * 2  # every second step is saved
    assert f"The last good checkpoint is of step {saved}." in message
    assert "--config.on_nonfinite=skip" in message
    assert RunDirectory(tmp_path).steps("latest")[-1] == saved

    train(tiny_config(on_nonfinite="skip"), tmp_path)
    output = capsys.readouterr().out
    assert f"Resuming from step {saved}" in output
    assert f"warning: step {first} is skipped: not finite: " in output
    lines = {line["step"]: line for line in read_metrics(tmp_path) if line["kind"] == "train"}
    assert list(lines) == list(range(1, 21))
    assert lines[first]["loss/depth"] is None
    assert lines[20]["skipped"] == 1 + len(others)
    assert all(np.isfinite(lines[step]["loss"]) for step in lines if step not in (first, *others))


@pytest.mark.parametrize("on_nonfinite", [pytest.param("stop", marks=pytest.mark.slow), "skip"])
def test_loss_without_a_label_is_null_and_no_fault(on_nonfinite, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "SyntheticScenes", UnlabelledScenes)
    train(tiny_config(on_nonfinite=on_nonfinite), tmp_path)
    assert "warning: step" not in capsys.readouterr().out
    lines = [line for line in read_metrics(tmp_path) if line["kind"] == "train"]
    assert [line["loss/depth"] for line in lines] == [None] * 20
    assert all(line["labelled/depth"] == 0 for line in lines)
    assert all(line["loss/semseg"] > 0 and np.isfinite(line["loss"]) for line in lines)


def test_a_skipped_step_changes_nothing_but_the_count_of_steps():
    config = tiny_config(on_nonfinite="skip")
    tasks = select(config.tasks.set, config.tasks.names)
    mesh = create_mesh(config.train.batch_size)
    optimizer = create_optimizer(config.optimizer, config.train.steps)
    graph, before, layout = create_state(config.model, tasks, config.seed, optimizer, mesh)
    step = create_train_step(config, graph, tasks, optimizer, mesh, layout)
    source = open_source(config.data, tasks, "train")
    with contextlib.closing(open_batches(config, source)) as batches:
        good = next(batches)
    bad = {name: np.full_like(v, np.inf) if name == "depth" else v for name, v in good.items()}

    def run(*batches):
        state, skipped = jax.tree.map(np.copy, before), []
        for batch in batches:
            state, numbers = step(jax.device_put(state, layout), put_batch(batch, mesh))
            skipped.append(int(numbers["skipped"]))
        return state, skipped

    wanted, _ = run(good, good)
    found, skipped = run(good, bad, good, bad)
    assert skipped == [0, 1, 1, 2]
    assert int(found.step) == 4
    for a, b in ((found.parameters, wanted.parameters), (found.optimizer, wanted.optimizer)):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_skipping_ends_when_no_step_is_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(nonfinite, "MOST_SKIPS", 3)
    monkeypatch.setattr(sources, "SyntheticScenes", WorseScenes)
    with pytest.raises(NonFiniteError, match=r"Step 4: .*loss/depth.*, as in each of the 3 steps"):
        train(tiny_config(on_nonfinite="skip"), tmp_path)
