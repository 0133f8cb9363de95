"""Faults that must not cost a run its checkpoints: NaN, full disks, a second run, dead workers."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.checkpoints.save import SavingError
from mtmamba_jax.data_pipelines import sources
from mtmamba_jax.data_pipelines.sources import open_source
from mtmamba_jax.data_pipelines.workers import WorkerError
from mtmamba_jax.devices.sharding import create_mesh, put_batch
from mtmamba_jax.files import paths
from mtmamba_jax.tasks.table import select
from mtmamba_jax.training import nonfinite, state
from mtmamba_jax.training.nonfinite import NonFiniteError
from mtmamba_jax.training.optimizer import create_optimizer
from mtmamba_jax.training.report import read_metrics
from mtmamba_jax.training.state import create_state
from mtmamba_jax.training.step import create_train_step
from mtmamba_jax.training.train import open_batches, train
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config
from tests.training.test_processes import ROOT, losses, start

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


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    first = start(tmp_path, (1, 1), "train.steps=2000", "train.eval_every=2000")
    try:
        while len(losses(tmp_path)) < 3:
            assert first[0].poll() is None, first[0].communicate()[0]
            time.sleep(0.05)
        (second,) = start(tmp_path, (1, 1), "train.steps=2000", "train.eval_every=2000")
        output = second.communicate(timeout=240)[0]
        assert second.returncode != 0
        assert f"Another process trains in {tmp_path}. Wait for it, or choose another" in output
        before = len(losses(tmp_path))
        while len(losses(tmp_path)) < before + 3:  # the first one is not disturbed
            assert first[0].poll() is None, first[0].communicate()[0]
            time.sleep(0.05)
    finally:
        first[0].kill()
    first[0].wait()
    (third,) = start(tmp_path, (1, 1), "train.steps=2000", "train.eval_every=2000")
    try:
        line = next(line for line in third.stdout if "Resuming from" in line)
        assert int(re.search(r"step (\d+)", line)[1]) > 0
    finally:
        third.kill()


@contextlib.contextmanager
def without_rights():
    """Makes root, whom no permission stops, somebody else for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_directory_that_cannot_be_written_is_named_and_left_as_it_is():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        with without_rights(), pytest.raises(OSError) as error:
            train(tiny_config(), f"{folder}/run")
        assert f"{folder}/run cannot be written (Permission denied). Choose another" in str(
            error.value
        )
        assert os.listdir(folder) == []


def test_too_little_disk_space_is_reported_before_a_checkpoint_is_started(tmp_path, monkeypatch):
    asked = itertools.count()

    def usage(path):
        # At the start and for the latest checkpoints of steps 2, 4, ... 18 there is room.
        return types.SimpleNamespace(free=10**9 if next(asked) < 10 else 100)

    monkeypatch.setattr(paths.shutil, "disk_usage", usage)
    settings = {"train__eval_every": "20", "train__log_every": "20"}
    with pytest.raises(OSError) as error:
        train(tiny_config(**settings), tmp_path)
    assert f"A checkpoint could not be written to {tmp_path}" in str(error.value)
    assert "0 MB are free" in str(error.value)
    assert "The last good one is of step 18; the same command resumes" in str(error.value)
    assert RunDirectory(tmp_path).steps("latest") == [16, 18]
    with pytest.raises(OSError, match=r"A checkpoint needs about .* Free some, or choose another"):
        train(tiny_config(), tmp_path / "other")  # before it begins


def test_a_failed_save_is_reported_long_before_the_next(tmp_path, monkeypatch):
    def fail(self, step, **named):
        raise OSError("the disk is gone")

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    settings = {"train__steps": "2000", "train__eval_every": "2000", "train__log_every": "10"}
    with pytest.raises(SavingError) as error:
        train(tiny_config(train__checkpoint_every="500", **settings), tmp_path)
    message = "There is none yet; the same command starts from scratch once this is fixed."
    assert message in str(error.value)
    assert 500 <= read_metrics(tmp_path)[-1]["step"] < 900


def test_a_latest_checkpoint_is_not_saved_if_its_best_one_could_not_be(tmp_path, monkeypatch):
    save = ocp.CheckpointManager.save

    def fail(self, step, **named):
        if self.directory.name == "best" and step == 8:
            raise OSError("the disk is gone")
        return save(self, step, **named)

    with monkeypatch.context() as failing:
        failing.setattr(ocp.CheckpointManager, "save", fail)
        with pytest.raises(SavingError, match="last good one is of step 6"):
            train(tiny_config(), tmp_path)
    assert RunDirectory(tmp_path).steps("latest")[-1] == 6
    train(tiny_config(), tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path) if line["kind"] == "test"] == [
        8,
        16,
        20,
    ]


FULL_DISK = """
mount -t tmpfs -o size=700k tmpfs "$1" || exit 77
shift 1
"$@" && exit 1
mount -o remount,size=64m "$(dirname "$WORKDIR")" || exit 77
echo "--- with room:"
ls "$WORKDIR/latest"
"$@"
"""


def test_a_full_disk_is_reported_and_the_run_resumes_from_what_was_saved(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    workdir = disk / "run"
    command = [sys.executable, "-m", "tests.training.one_of_several", "0", "1", "0", str(workdir)]
    settings = ["train.steps=30", "train.checkpoint_every=1", "train.keep_checkpoints=100"]
    found = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount"),
            *("sh", "-c", FULL_DISK, "sh", str(disk)),
            *(*command, *settings, "train.eval_every=30"),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "WORKDIR": str(workdir)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    if found.returncode == 77 or "unshare failed" in found.stderr:
        pytest.skip("needs a user namespace, to mount a small disk in")
    output = found.stdout + found.stderr
    assert found.returncode == 0, output
    assert "could not be written" in found.stderr
    assert "No space left on device" in found.stderr
    assert "the same command resumes from" in found.stderr
    full, room = found.stdout.split("--- with room:\n")
    saved = [int(name) for name in room.split("Resuming")[0].split() if name.isdigit()]
    assert saved, output
    assert f"Resuming from step {max(saved)} in {workdir}" in room
    assert "step 30/30" in room
    assert "step 30/30" not in full


def test_a_run_unlocks_its_directory_when_it_ends(tmp_path):
    for _ in range(2):  # in one process, which a lock would keep for as long as it lives
        train(tiny_config(train__steps="2", train__eval_every="2"), tmp_path)


class DeadlyScenes(sources.SyntheticScenes):
    """Scenes of which a process reads 13."""

    read = 0

    def __getitem__(self, index):
        DeadlyScenes.read += 1
        if DeadlyScenes.read > 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


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
