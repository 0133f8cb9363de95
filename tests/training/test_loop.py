"""A run: killed and gone on with, refused, stopped on a non-finite loss."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mtmamba_jax.data_pipelines import sources
from mtmamba_jax.tasks import select
from mtmamba_jax.training import loop, state
from mtmamba_jax.training.checkpoints import Checkpoints
from mtmamba_jax.training.clock import MEASURED
from mtmamba_jax.training.loop import train
from mtmamba_jax.training.report import read_metrics
from mtmamba_jax.training.state import abstract_build
from mtmamba_jax.training.step import create_train_step
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config

ROOT = pathlib.Path(__file__).parents[2]


def start(workdir):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.killed_run", str(workdir)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def final_parameters(workdir):
    config = tiny_config()
    checkpoints = Checkpoints(workdir)
    assert checkpoints.step("latest") == 20
    like = abstract_build(config, select(config.tasks.set, config.tasks.names))[1]
    parameters = [checkpoints.parameters(kind, like) for kind in ("latest", "best")]
    checkpoints.close()
    return parameters


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(tiny_config(), workdir)


def test_run_killed_at_a_random_step_ends_with_the_same_bits(finished, tmp_path):
    whole, _ = finished
    workdir = tmp_path / "killed"
    killed = start(workdir)
    fatal_step = random.randrange(5, 15)  # the first checkpoint is of step 2
    while not any(line["step"] >= fatal_step for line in read_metrics(workdir)):
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.02)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL, "it ended before it could be killed"

    resumed = start(workdir)
    output, _ = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, output
    assert "Going on from step" in output, f"killed at {fatal_step}: {output}"
    wanted, found = (final_parameters(path) for path in (whole, workdir))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=f"killed at step {fatal_step}")

    def numbers(path):
        lines = read_metrics(path)
        return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]

    assert numbers(workdir) == numbers(whole)


def test_run_leaves_scores_panels_numbers_and_checkpoints(finished):
    workdir, result = finished
    assert result.scores.keys() == result.constants.keys() == {"semseg", "depth"}
    assert [path.name for path in result.panels] == ["test_000000.png", "test_000001.png"]
    lines = read_metrics(workdir)
    assert lines[0] == {"step": 0, "kind": "constant", **result.constants}
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [*range(1, 21)]
    rates = [line["learning_rate"] for line in trained]
    assert all(0 < rate <= tiny_config().optimizer.learning_rate for rate in rates)
    tests = {line["step"]: line for line in lines if line["kind"] == "test"}
    assert list(tests) == [8, 16, 20]
    best = max(tests, key=lambda step: tests[step]["delta_m"])
    assert result.step == best
    assert tests[best]["depth/RMSE"] == result.scores["depth"]["RMSE"]
    assert list((workdir / "tensorboard").glob("events*"))


def test_finished_run_is_not_trained_again(finished):
    workdir, result = finished
    before = read_metrics(workdir)
    again = train(tiny_config(), workdir)
    assert again.step == result.step
    assert again.scores == result.scores
    assert read_metrics(workdir) == before


def test_other_configuration_is_refused_with_the_keys_that_differ(finished):
    workdir, _ = finished
    config = tiny_config(optimizer__power="1.0", model__state_size="3")
    with pytest.raises(ValueError) as error:
        train(config, workdir)
    message = str(error.value)
    assert "model.state_size: 2 -> 3" in message
    assert "optimizer.power: 0.9 -> 1.0" in message
    assert "--workdir" in message
    assert json.loads((workdir / "config.json").read_text())["model.state_size"] == 2


def test_resuming_may_change_how_a_run_is_watched(finished):
    workdir, result = finished
    assert train(tiny_config(train__log_every="2"), workdir).step == result.step


class SlowScenes(sources.SyntheticScenes):
    """Scenes that take long to read while training."""

    def __getitem__(self, index):
        if self.split == "train":
            time.sleep(0.2)
        return super().__getitem__(index)


@pytest.mark.parametrize("slow", ["source", "step"])
def test_waiting_for_input_is_logged(slow, tmp_path, monkeypatch, capsys):
    def create_slow_step(*arguments):
        step = create_train_step(*arguments)

        def slow_step(*arguments):
            time.sleep(0.2)
            return step(*arguments)

        return slow_step

    monkeypatch.setattr(state, "build", build_pixel_model)
    if slow == "source":
        monkeypatch.setattr(sources, "SyntheticScenes", SlowScenes)
    else:
        monkeypatch.setattr(loop, "create_train_step", create_slow_step)
    train(tiny_config(train__steps="9", train__log_every="4", train__eval_every="9"), tmp_path)
    lines = [line for line in read_metrics(tmp_path) if line["kind"] == "train"]
    share = lines[1]["input_wait"]  # of steps 5 to 8: step 1 compiles
    assert 0.6 < share <= 1 if slow == "source" else 0 <= share < 0.4
    assert f", {100 * share:.0f} % waiting for input" in capsys.readouterr().out
