"""A training run: what it leaves, how it resumes, what it refuses."""

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest

from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.checkpoints.save import CheckpointWriter
from mtmamba_jax.data_pipelines import sources
from mtmamba_jax.data_pipelines.workers import WorkerError
from mtmamba_jax.tasks.table import DEPTH
from mtmamba_jax.training import state
from mtmamba_jax.training.optimizer import learning_rate
from mtmamba_jax.training.report import read_metrics
from mtmamba_jax.training.step import create_train_step
from mtmamba_jax.training.train import train
from tests.pixel_model import build_pixel_model
from tests.tiny import TINY, tiny_config
from tests.training import kill_tally


@pytest.fixture(scope="module", autouse=True)
def pixel_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "build", build_pixel_model)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(tiny_config(), workdir)


def test_a_run_killed_twice_ends_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("mtmamba_jax.checkpoints.load.abstract_build", build_pixel_model)
    settings = TINY | {"train.steps": "12", "train.eval_every": "6"}
    whole = kill_tally.live(
        tmp_path / "whole", tmp_path / "whole.txt", settings, kill_tally.NEVER, pixel_model=True
    )
    assert whole.code == 0, whole.output
    seed = random.randrange(2**32)
    tally = kill_tally.kill_often(
        tmp_path / "whole", tmp_path, settings, kills=2, seed=seed, pixel_model=True
    )
    assert not tally.problems(), tally.report()


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_with_the_same_bits(tmp_path):
    assert kill_tally.main(["--kills=20", f"--workdir={tmp_path}"]) == 0


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


@pytest.mark.parametrize(
    ("names", "depth", "warning"),
    [
        ("semseg,depth", 3.3, "leaves out depth: its best constant prediction has RMSE 0 because"),
        ("semseg,depth", DEPTH.ignore, "leaves out depth: no pixel of the test set is labelled"),
        ("depth", 3.3, "so the best checkpoint is the last one that is evaluated"),
    ],
)
def test_a_constant_score_of_0_or_none_does_not_end_a_run(
    names, depth, warning, tmp_path, monkeypatch, capsys
):
    class FlatScenes(sources.SyntheticScenes):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            if example["id"].startswith("test"):
                example["depth"][...] = depth
            return example

    monkeypatch.setattr(sources, "SyntheticScenes", FlatScenes)
    result = train(tiny_config(tasks__names=names, train__steps="8"), tmp_path)
    assert warning in capsys.readouterr().out
    assert result.step == 8
    (line,) = (line for line in read_metrics(tmp_path) if line["kind"] == "test")
    assert (line["delta_m"] is None) == (names == "depth")


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
    assert RunDirectory(workdir).read_config().train.log_every == 2


def test_a_finished_run_is_extended_only_if_asked_and_keeps_its_optimizer(finished, tmp_path):
    workdir = tmp_path / "longer"
    shutil.copytree(finished[0], workdir)
    longer = tiny_config(train__steps="24", on_nonfinite="skip")  # logs if AdamW's count is behind
    with pytest.raises(ValueError, match=r"train.steps: 20 -> 24\n.*--extend resumes with"):
        train(longer, workdir)
    train(longer, workdir, extend=True)
    lines = [line for line in read_metrics(workdir) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [*range(1, 25)]
    assert [line["skipped"] for line in lines[20:]] == [0] * 4
    rate = learning_rate(longer.optimizer, 24)
    found = [line["learning_rate"] for line in lines[20:]]
    np.testing.assert_allclose(found, [rate(step) for step in range(20, 24)], rtol=1e-6)
    assert RunDirectory(workdir).read_config().train.steps == 24
    with pytest.raises(ValueError, match=r"train.steps: 24 -> 20\n.* starts from its weights\.$"):
        train(tiny_config(), workdir, extend=True)


def test_converted_weights_are_no_run_to_resume(tmp_path):
    for name, config in (("whole", tiny_config().flat()), ("encoder", {})):
        directory = RunDirectory(tmp_path / name)
        with contextlib.closing(CheckpointWriter(directory, config=config)) as checkpoints:
            checkpoints.save_best({"parameters": {"weight": jnp.zeros(1)}}, 0, {})
    with pytest.raises(ValueError, match=r"converted weights, .*--config.init.run=.*/whole$"):
        train(tiny_config(), tmp_path / "whole")
    with pytest.raises(ValueError, match=r"of an encoder, .*--config.init.encoder=.*/encoder and"):
        train(tiny_config(), tmp_path / "encoder")


class Late:
    """A number that is there some seconds after its step was launched."""

    def __init__(self, number, seconds):
        self._number, self._end = number, time.monotonic() + seconds

    def block_until_ready(self):
        time.sleep(max(0, self._end - time.monotonic()))
        return self

    def __array__(self):
        self.block_until_ready()
        return np.asarray(self._number)


def test_the_first_step_does_not_count_in_the_logged_time(tmp_path, monkeypatch):
    def create_step(*arguments):
        step, seconds = create_train_step(*arguments), itertools.chain([3], itertools.repeat(0))

        def late_step(*arguments):
            state, numbers = step(*arguments)
            return state, numbers | {"loss": Late(numbers["loss"], next(seconds))}

        return late_step

    monkeypatch.setattr("mtmamba_jax.training.train.create_train_step", create_step)
    every = {"train__eval_every": "20", "train__checkpoint_every": "20", "train__log_every": "4"}
    train(tiny_config(**every), tmp_path)
    lines = [line for line in read_metrics(tmp_path) if line["kind"] == "train"]
    assert lines[0]["seconds_per_step"] < 1  # of steps 2 to 4


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

    if slow == "source":
        monkeypatch.setattr(sources, "SyntheticScenes", SlowScenes)
    else:
        monkeypatch.setattr("mtmamba_jax.training.train.create_train_step", create_slow_step)
    train(tiny_config(train__steps="9", train__log_every="4", train__eval_every="9"), tmp_path)
    lines = [line for line in read_metrics(tmp_path) if line["kind"] == "train"]
    share = lines[1]["input_wait"]  # of steps 5 to 8: step 1 compiles
    assert 0.6 < share <= 1 if slow == "source" else 0 <= share < 0.4
    assert f", {100 * share:.0f} % waiting for input" in capsys.readouterr().out


class DeadlyScenes(sources.SyntheticScenes):
    """Scenes of which a process reads 13."""

    read = 0

    def __getitem__(self, index):
        DeadlyScenes.read += 1
        if DeadlyScenes.read > 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.slow
def test_a_run_whose_data_worker_died_resumes_from_its_last_checkpoint(
    tmp_path, monkeypatch, capsys
):
    config = tiny_config(data__num_workers="1", train__eval_every="20")
    with monkeypatch.context() as dying:
        dying.setattr(sources, "SyntheticScenes", DeadlyScenes)
        with pytest.raises(WorkerError, match="killed by SIGKILL"):
            train(config, tmp_path)  # 13 examples: 6 steps, of which every second is saved
    capsys.readouterr()
    train(config, tmp_path)
    step = int(re.search(r"Resuming from step (\d+)", capsys.readouterr().out)[1])
    assert step in (4, 6)  # a batch that was on its way when the worker died may be lost
    assert read_metrics(tmp_path)[-1]["step"] == 20
