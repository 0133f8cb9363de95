"""What a run resumes from."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmamba_jax.checkpoints.resume import resume
from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.checkpoints.save import CheckpointWriter
from mtmamba_jax.devices.sharding import create_mesh, state_sharding
from mtmamba_jax.training.state import TrainState

ROOT = pathlib.Path(__file__).parents[2]
DAMAGE = """
import gc, pathlib, sys
from tests.checkpoints.test_resume import resumed, saved_run
for name in "abcd":
    workdir = saved_run(pathlib.Path(sys.argv[1]) / name, arrays=40)
    for path in (workdir / "latest" / "12" / "parameters").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:50])
    print(resumed(workdir, arrays=40).step)
    gc.collect()
"""


def state_of(step, arrays=1):
    parameters = {f"kernel_{i}": jnp.full((64, 64), step) for i in range(arrays)}
    state = TrainState(jnp.int32(step), parameters, {"mean": jnp.zeros(4)})
    return jax.device_put(state, state_sharding(state, create_mesh(1)))


def saved_run(workdir, arrays=1):
    checkpoints = CheckpointWriter(RunDirectory(workdir), keep=3, config={})
    for step in (8, 9, 12):
        checkpoints.save_latest(state_of(step, arrays).to_items(), step)
    weights = {"parameters": state_of(9, arrays).parameters}
    checkpoints.save_best(weights, 9, {"delta_m": 1.0})
    checkpoints.close()
    return workdir


def resumed(workdir, arrays=1):
    return resume(RunDirectory(workdir), state_of(0, arrays).to_items())


@pytest.fixture
def workdir(tmp_path):
    return saved_run(tmp_path)


def test_the_newest_state_and_the_best_one_are_found(workdir):
    found = resumed(workdir)
    assert found.step == 12
    np.testing.assert_array_equal(found.items["parameters"]["kernel_0"], np.full((64, 64), 12))
    assert (found.best["step"], found.best["delta_m"]) == (9, 1.0)


def test_what_a_killed_process_was_writing_is_deleted(workdir):
    unfinished = workdir / "latest" / "16.orbax-checkpoint-tmp" / "parameters"
    unfinished.mkdir(parents=True)
    (unfinished / "d").write_bytes(b"some")
    assert resumed(workdir).step == 12
    assert not unfinished.parent.exists()
    assert RunDirectory(workdir).steps("latest") == [8, 9, 12]


def test_a_copy_that_somebody_made_is_no_checkpoint(workdir):
    for name in ("latest/copy_99", "latest/0100", "best/9_copy_99"):
        (workdir / name).mkdir()
    assert resumed(workdir).step == 12
    assert RunDirectory(workdir).newest("best").path == workdir / "best" / "9"
    assert (workdir / "latest" / "copy_99").exists()


def test_a_best_one_of_a_step_that_is_redone_is_deleted(workdir):
    for step in (9, 12):
        (workdir / "latest" / str(step)).rename(workdir / f"lost_{step}")
    found = resumed(workdir)
    assert found.step == 8
    assert found.best is None
    assert RunDirectory(workdir).steps("best") == []


def test_a_damaged_best_one_of_an_earlier_step_is_renamed(workdir, capsys):
    (workdir / "best" / "9" / "details" / "metadata").unlink()
    found = resumed(workdir)
    assert (found.step, found.best, found.best_is_missing) == (12, None, False)
    assert (workdir / "unreadable_best_9").is_dir()
    assert "and the next evaluation saves a new one." in capsys.readouterr().out


def test_nothing_is_found_where_no_run_was(tmp_path):
    assert resumed(tmp_path / "new") is None
    assert not (tmp_path / "new").exists()


def test_a_damaged_checkpoint_prints_one_line_and_no_tracebacks(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", DAMAGE, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stderr
    said = found.stdout.splitlines()
    assert [line for line in said if not line.startswith("warning: checkpoint ")] == 4 * ["9"]
    assert len(said) == 8
    assert "Traceback" not in found.stderr
    assert "never" not in found.stderr
