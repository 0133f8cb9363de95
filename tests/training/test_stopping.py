"""Runs that are stopped by a signal, and runs that resume from damaged checkpoints."""

import errno
import re
import shutil
import signal
import time

import orbax.checkpoint as ocp
import pytest

from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.training import state
from mtmamba_jax.training.report import read_metrics
from mtmamba_jax.training.stopping import StoppedError, StopSignals
from mtmamba_jax.training.train import train
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config
from tests.training.lives import repeatable
from tests.training.test_processes import SETTINGS, finish, losses, run, start

STEPS = ("train.steps=60", "train.eval_every=60", "train.checkpoint_every=20")
SMALL = dict(pair.split("=") for pair in [*SETTINGS, *STEPS])

# Layouts are (processes, devices that share a state); None trains in this process.
several = [
    pytest.param((2, 1), marks=pytest.mark.slow),
    pytest.param((2, 2), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", autouse=True)
def pixel_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "build", build_pixel_model)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    train(small_config(), workdir)
    return workdir


def small_config(**overrides):
    keys = {key.replace(".", "__"): value for key, value in SMALL.items()}
    return tiny_config(**keys, **overrides)


def resume(workdir, layout, capsys):
    """Trains on and returns what is printed."""
    if layout:
        return run(workdir, layout, *STEPS)[0]
    capsys.readouterr()
    train(small_config(), workdir)
    return capsys.readouterr().out


def assert_same_losses(workdir, whole, layout):
    # In one process bit for bit; in several the order of float32 sums differs.
    rel = 0 if layout in (None, (1, 1)) else 1e-5
    assert losses(workdir) == pytest.approx(losses(whole), rel=rel, abs=0)


@pytest.mark.parametrize(
    ("layout", "number"),
    [
        ((2, 1), signal.SIGTERM),
        pytest.param((1, 1), signal.SIGINT, marks=pytest.mark.slow),
        pytest.param((1, 1), signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param((2, 1), signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_saves_and_resumes_as_if_it_had_not_been_stopped(
    layout, number, whole, tmp_path, capsys
):
    started = start(tmp_path, layout, *STEPS)
    deadline = time.monotonic() + 120
    while len(losses(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    started[-1].send_signal(number)  # of several processes to one
    outputs = finish(started)
    if number == signal.SIGINT:
        assert "Stopping after this step, to save it. Ctrl-C again" in outputs[-1]
    # Several processes agree by JAX's service for SIGTERM.
    name = "SIGTERM" if layout[0] > 1 else number.name
    stopped = re.search(rf"Stopped by {name} after step (\d+), which is saved", outputs[0])
    step = int(stopped[1])
    assert 3 <= step < 60
    assert RunDirectory(tmp_path).steps("latest")[-1] == step
    assert f"Resuming from step {step}" in resume(tmp_path, layout, capsys)
    assert_same_losses(tmp_path, whole, layout)


def test_a_signal_stops_the_run_in_this_process_and_it_resumes_bit_for_bit(
    whole, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as stopping:
        stopping.setattr(
            StopSignals, "noticed", lambda self, step: signal.SIGTERM if step == 33 else None
        )
        with pytest.raises(StoppedError, match="after step 33, which is saved"):
            train(small_config(), tmp_path)
    assert "Resuming from step 33" in resume(tmp_path, None, capsys)
    assert_same_losses(tmp_path, whole, None)


def empty_files(checkpoint):
    for path in checkpoint.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def cut_arrays(checkpoint):
    for path in (checkpoint / "parameters").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:50])


def lose_a_part(checkpoint):
    shutil.rmtree(checkpoint / "rest")


def lose_details(checkpoint):
    (checkpoint / "details" / "metadata").unlink()


@pytest.mark.parametrize("layout", [None, *several])
@pytest.mark.parametrize("damage", [empty_files, cut_arrays, lose_a_part])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    damage, layout, whole, tmp_path, capsys
):
    workdir = shutil.copytree(whole, tmp_path / "run")
    newest = workdir / "latest" / "60"
    damage(newest)
    output = resume(workdir, layout, capsys)
    assert f"warning: checkpoint {newest} cannot be read" in output
    assert "Resuming from step 40" in output
    assert (workdir / "unreadable_latest_60").is_dir()
    assert_same_losses(workdir, whole, layout)


@pytest.mark.parametrize("damage", [cut_arrays, lose_details])
def test_damage_is_noticed_by_reading_if_the_sizes_of_files_were_not_recorded(
    damage, whole, tmp_path, capsys
):
    workdir = shutil.copytree(whole, tmp_path / "run")
    newest = workdir / "latest" / "60"
    damage(newest)
    (newest / "files.json").unlink()
    output = resume(workdir, None, capsys)
    assert f"warning: checkpoint {newest} cannot be read" in output
    assert "Resuming from step 40" in output


@pytest.mark.parametrize("layout", [None, several[0]])
@pytest.mark.parametrize("damage", [empty_files, cut_arrays, lose_details])
def test_a_damaged_best_checkpoint_is_named_and_saved_again(
    damage, layout, whole, tmp_path, capsys
):
    workdir = shutil.copytree(whole, tmp_path / "run")
    (best,) = (workdir / "best").iterdir()
    damage(best)
    output = resume(workdir, layout, capsys)
    assert f"warning: checkpoint {best} cannot be read" in output
    assert "and the best one is saved again from the latest state." in output
    assert "Resuming from step 60" in output
    assert (workdir / f"unreadable_best_{best.name}").is_dir()
    assert [path.name for path in (workdir / "best").iterdir()] == ["60"]
    assert len(read_metrics(workdir)) == len(read_metrics(whole))  # no score is written twice
    details = [RunDirectory(each).newest("best").read_details() for each in (workdir, whole)]
    assert details[0] == details[1]


def test_a_run_killed_between_its_latest_and_its_best_checkpoint_saves_the_best_again(
    whole, tmp_path, capsys
):
    workdir = shutil.copytree(whole, tmp_path / "run")
    (best,) = (workdir / "best").iterdir()
    best.rename(best.with_name(f"{best.name}.orbax-checkpoint-tmp"))
    resume(workdir, None, capsys)
    directories = [RunDirectory(each) for each in (workdir, whole)]
    assert directories[0].steps("best") == directories[1].steps("best")
    details = [directory.newest("best").read_details() for directory in directories]
    assert details[0] == details[1]


@pytest.mark.parametrize("layout", [None, several[0]])
@pytest.mark.parametrize("damage", [lambda checkpoint: None, lose_details])
def test_a_run_killed_before_its_first_latest_checkpoint_starts_from_scratch(
    damage, layout, whole, tmp_path, capsys
):
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "latest")
    (best,) = (workdir / "best").iterdir()
    damage(best)
    best.rename(best.with_name("90"))  # later than all that are to come
    output = resume(workdir, layout, capsys)
    assert "best/90 belongs to a run that left no state to resume from" in output
    assert (workdir / "earlier_best_90").is_dir()
    assert [path.name for path in (workdir / "best").iterdir()] == ["60"]
    assert_same_losses(workdir, whole, layout)


def test_a_checkpoint_that_cannot_be_read_for_now_is_left_as_it_is(whole, tmp_path, monkeypatch):
    workdir = shutil.copytree(whole, tmp_path / "run")

    def fail(*arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ocp.CompositeCheckpointHandler, "restore", fail)
    with pytest.raises(OSError, match=r"latest/60 could not be read .* It is left as it is"):
        train(small_config(), workdir)
    assert RunDirectory(workdir).steps("latest") == RunDirectory(whole).steps("latest")


def test_a_run_stopped_at_an_evaluation_step_evaluates_when_it_resumes(tmp_path, monkeypatch):
    train(tiny_config(), tmp_path / "whole")  # evaluates after steps 8, 16 and 20
    with monkeypatch.context() as stopping:
        stopping.setattr(
            StopSignals, "noticed", lambda self, step: signal.SIGTERM if step == 8 else None
        )
        with pytest.raises(StoppedError, match="after step 8, which is saved"):
            train(tiny_config(), tmp_path / "stopped")
    assert not [line for line in read_metrics(tmp_path / "stopped") if line["kind"] == "test"]
    train(tiny_config(), tmp_path / "stopped")

    stopped, whole = (repeatable(read_metrics(tmp_path / name)) for name in ("stopped", "whole"))
    assert stopped == whole


def test_a_lost_configuration_is_read_from_the_checkpoints(whole, tmp_path, capsys):
    workdir = shutil.copytree(whole, tmp_path / "run")
    (workdir / "config.json").unlink()
    assert "Resuming from step 60" in resume(workdir, None, capsys)
    (workdir / "config.json").unlink()
    with pytest.raises(ValueError, match=r"optimizer.power: 0.9 -> 1.0"):
        train(small_config(optimizer__power="1.0"), workdir)


def test_a_best_checkpoint_half_deleted_for_a_later_one_does_not_end_the_next_start(
    whole, tmp_path, capsys
):
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "latest" / "60")
    (workdir / "best" / "30").mkdir()  # that of step 60 is finished
    assert "Resuming from step 40" in resume(workdir, None, capsys)
    assert [path.name for path in (workdir / "best").iterdir()] == ["60"]
    assert_same_losses(workdir, whole, None)


def test_nothing_is_deleted_if_no_checkpoint_can_be_read(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    for checkpoint in (workdir / "latest").iterdir():
        empty_files(checkpoint)
    with pytest.raises(ValueError, match=r"can be read \(step 60: .* to start from scratch"):
        train(small_config(), workdir)
    assert (workdir / "metrics.jsonl").exists()
    assert RunDirectory(workdir).steps("latest") == RunDirectory(whole).steps("latest")
