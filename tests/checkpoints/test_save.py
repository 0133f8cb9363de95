"""Saves that fail: what a run says, and that its earlier checkpoints are intact."""

import itertools
import os
import subprocess
import sys
import types

import orbax.checkpoint as ocp
import pytest

from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.checkpoints.save import SavingError
from mtmamba_jax.files import paths
from mtmamba_jax.training import state
from mtmamba_jax.training.report import read_metrics
from mtmamba_jax.training.train import train
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config
from tests.training.test_processes import ROOT


@pytest.fixture(autouse=True)
def pixel_model(monkeypatch):
    monkeypatch.setattr(state, "build", build_pixel_model)


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


def test_a_file_of_tensorboard_on_a_full_disk_is_closed_without_a_message(tmp_path):
    program = """
import sys
from mtmamba_jax.cli.main import _silence_repeated_errors
_silence_repeated_errors()
file = open(sys.argv[1], "wb")
file.write(b"1")
"""
    file = tmp_path / "events.out.tfevents.1"
    file.symlink_to("/dev/full")
    command = [sys.executable, "-c", program, str(file)]
    assert not subprocess.run(command, capture_output=True, text=True).stderr


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
    command = [sys.executable, "-m", "tests.training.killed_run", str(workdir), "pixel"]
    settings = ["train.steps=30", "train.checkpoint_every=1", "train.keep_checkpoints=100"]
    found = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount"),
            *("sh", "-c", FULL_DISK, "sh", str(disk)),
            *(*command, *settings, "train.eval_every=30"),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "WORKDIR": str(workdir)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    if found.returncode == 77 or "unshare failed" in found.stderr:
        pytest.skip("needs a user namespace, to mount a small disk in")
    output = found.stdout + found.stderr
    assert found.returncode == 0, output
    message, *more = found.stderr.splitlines()
    assert not more, found.stderr
    # The checkpoint, before or while it is written, or a line of metrics.jsonl: whichever needed
    # room first.
    assert message.startswith("error: ")
    assert str(workdir) in message
    assert "could not be written" in message
    assert "No space left on device" in message or "MB are free. Free some" in message
    assert "the same command resumes from" in message
    full, room = found.stdout.split("--- with room:\n")
    saved = [int(name) for name in room.split("Training")[0].split() if name.isdigit()]
    assert saved, output
    assert f"Resuming from step {max(saved)} in {workdir}" in room
    assert "step 30/30" in room
    assert "step 30/30" not in full
