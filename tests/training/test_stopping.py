"""A run that is told to stop saves; one whose newest checkpoint is damaged takes the one before."""

import errno
import re
import shutil
import signal
import time

import orbax.checkpoint as ocp
import pytest

from mtmamba_jax.training import state
from mtmamba_jax.training.clock import MEASURED
from mtmamba_jax.training.report import read_metrics
from mtmamba_jax.training.stopping import StoppedError, StopSignals
from mtmamba_jax.training.train import train
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config
from tests.training.test_processes import SETTINGS, finish, losses, run, start

STEPS = ("train.steps=60", "train.eval_every=60", "train.checkpoint_every=20")

SMALL = dict(pair.split("=") for pair in [*SETTINGS, *STEPS])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    run(workdir, (1, 1), *STEPS)
    return workdir


def steps_saved(workdir):
    return sorted(int(path.name) for path in (workdir / "latest").iterdir())


@pytest.mark.parametrize(
    ("layout", "number"),
    [
        ((1, 1), signal.SIGTERM),
        ((1, 1), signal.SIGINT),
        ((2, 1), signal.SIGTERM),
        ((2, 1), signal.SIGINT),
    ],
)
def test_a_run_told_to_stop_saves_and_goes_on_as_if_it_had_not(layout, number, whole, tmp_path):
    started = start(tmp_path, layout, *STEPS)
    deadline = time.monotonic() + 120
    while len(losses(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    started[-1].send_signal(number)  # of several processes to one
    outputs = finish(started)
    if number == signal.SIGINT:
        assert "Stopping after this step, to save. Ctrl-C again" in outputs[-1]
    # Several processes agree by JAX's service for SIGTERM.
    name = "SIGTERM" if layout[0] > 1 else number.name
    stopped = re.search(rf"Stopped by {name} after step (\d+), which is saved", outputs[0])
    step = int(stopped[1])
    assert 3 <= step < 60
    assert steps_saved(tmp_path)[-1] == step
    assert f"Resuming from step {step}" in run(tmp_path, layout, *STEPS)[0]
    # On one process bit for bit; on two the order of float32 sums differs from one's.
    rel = 0 if layout == (1, 1) else 1e-5
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=rel, abs=0)


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


@pytest.mark.parametrize("layout", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("damage", [empty_files, cut_arrays, lose_a_part])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken(
    damage, layout, whole, tmp_path
):
    workdir = shutil.copytree(whole, tmp_path / "run")
    newest = workdir / "latest" / "60"
    damage(newest)
    output = run(workdir, layout, *STEPS)[0]
    assert f"warning: checkpoint {newest} cannot be read" in output
    assert "Resuming from step 40" in output
    assert (workdir / "unreadable_latest_60").is_dir()
    rel = 0 if layout == (1, 1) else 1e-5
    assert losses(workdir) == pytest.approx(losses(whole), rel=rel, abs=0)


@pytest.mark.parametrize("layout", [(1, 1), (2, 1)])
@pytest.mark.parametrize("damage", [empty_files, cut_arrays, lose_details])
def test_a_damaged_best_checkpoint_is_named_and_made_again(damage, layout, whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    (best,) = (workdir / "best").iterdir()
    damage(best)
    output = run(workdir, layout, *STEPS)[0]
    assert f"warning: checkpoint {best} cannot be read" in output
    assert "Resuming from step 60" in output
    assert (workdir / f"unreadable_best_{best.name}").is_dir()
    assert [path.name for path in (workdir / "best").iterdir()] == ["60"]
    assert len(read_metrics(workdir)) == len(read_metrics(whole))  # no score is written twice


@pytest.mark.parametrize("layout", [(1, 1), (2, 1)])
@pytest.mark.parametrize("damage", [lambda checkpoint: None, lose_details])
def test_a_run_that_was_killed_before_its_first_latest_one_starts_anew(
    damage, layout, whole, tmp_path
):
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "latest")
    (best,) = (workdir / "best").iterdir()
    damage(best)
    best.rename(best.with_name("90"))  # later than all that are to come
    output = run(workdir, layout, *STEPS)[0]
    assert "best/90 is of a run that left no state to go on from" in output
    assert (workdir / "earlier_best_90").is_dir()
    assert [path.name for path in (workdir / "best").iterdir()] == ["60"]
    rel = 0 if layout == (1, 1) else 1e-5
    assert losses(workdir) == pytest.approx(losses(whole), rel=rel, abs=0)


def test_a_checkpoint_that_cannot_be_read_for_now_stays_where_it_is(whole, tmp_path, monkeypatch):
    workdir = shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(state, "build", build_pixel_model)
    config = tiny_config(**{key.replace(".", "__"): value for key, value in SMALL.items()})

    def fail(*arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ocp.CompositeCheckpointHandler, "restore", fail)
    with pytest.raises(OSError, match=r"latest/60 could not be read .* It stays where it is"):
        train(config, workdir)
    assert steps_saved(workdir) == steps_saved(whole)


def test_a_run_stopped_where_it_is_to_evaluate_does_so_when_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "build", build_pixel_model)
    train(tiny_config(), tmp_path / "whole")  # evaluates after steps 8, 16 and 20
    with monkeypatch.context() as stopping:
        stopping.setattr(
            StopSignals, "noticed", lambda self, step: signal.SIGTERM if step == 8 else None
        )
        with pytest.raises(StoppedError, match="after step 8, which is saved"):
            train(tiny_config(), tmp_path / "stopped")
    assert not [line for line in read_metrics(tmp_path / "stopped") if line["kind"] == "test"]
    train(tiny_config(), tmp_path / "stopped")

    def lines(name):
        found = read_metrics(tmp_path / name)
        return [{k: v for k, v in line.items() if k not in MEASURED} for line in found]

    assert lines("stopped") == lines("whole")


def test_a_lost_configuration_is_read_from_the_checkpoints(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    (workdir / "config.json").unlink()
    assert "Resuming from step 60" in run(workdir, (1, 1), *STEPS)[0]
    (other,) = start(workdir, (1, 1), *STEPS, "optimizer.power=1.0")
    assert "optimizer.power: 0.9 -> 1.0" in other.communicate(timeout=240)[0]


def test_a_best_checkpoint_half_deleted_for_a_later_one_does_not_end_the_next_start(
    whole, tmp_path
):
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "latest" / "60")
    (workdir / "best" / "30").mkdir()  # that of step 60 is finished
    assert "Resuming from step 40" in run(workdir, (1, 1), *STEPS)[0]
    assert [path.name for path in (workdir / "best").iterdir()] == ["60"]
    assert losses(workdir) == losses(whole)


def test_without_a_checkpoint_that_can_be_read_nothing_is_lost(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    for checkpoint in (workdir / "latest").iterdir():
        empty_files(checkpoint)
    (started,) = start(workdir, (1, 1), *STEPS)
    output = started.communicate(timeout=240)[0]
    assert started.returncode != 0
    assert "can be read (of step 60: " in output
    assert "or delete this one to start anew" in output
    assert (workdir / "metrics.jsonl").exists()
    assert steps_saved(workdir) == steps_saved(whole)
