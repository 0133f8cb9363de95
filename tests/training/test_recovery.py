"""What a run goes on from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmamba_jax.sharding import create_mesh, split_state
from mtmamba_jax.training.checkpoints import Checkpoints
from mtmamba_jax.training.recovery import recover
from mtmamba_jax.training.saved import newest, steps_saved
from mtmamba_jax.training.state import TrainState


def state_of(step):
    state = TrainState(jnp.int32(step), {"kernel": jnp.full(4, step)}, {"mean": jnp.zeros(4)})
    return jax.device_put(state, split_state(state, create_mesh(1)))


@pytest.fixture
def workdir(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (8, 9, 12):
        checkpoints.save_latest(state_of(step))
    checkpoints.save_best(state_of(9), {"delta_m": 1.0})
    checkpoints.close()
    return tmp_path


def test_the_newest_state_and_the_best_one_are_found(workdir):
    found = recover(workdir, like=state_of(0))
    assert int(found.state.step) == 12
    np.testing.assert_array_equal(found.state.parameters["kernel"], np.full(4, 12))
    assert (found.best["step"], found.best["delta_m"]) == (9, 1.0)


def test_what_a_killed_process_was_writing_is_deleted(workdir):
    unfinished = workdir / "latest" / "16.orbax-checkpoint-tmp" / "parameters"
    unfinished.mkdir(parents=True)
    (unfinished / "d").write_bytes(b"some")
    assert int(recover(workdir, like=state_of(0)).state.step) == 12
    assert not unfinished.parent.exists()
    assert steps_saved(workdir, "latest") == [8, 9, 12]


def test_a_copy_that_somebody_made_is_no_checkpoint(workdir):
    for name in ("latest/copy_99", "latest/0100", "best/9_copy_99"):
        (workdir / name).mkdir()
    assert int(recover(workdir, like=state_of(0)).state.step) == 12
    assert newest(workdir, "best") == workdir / "best" / "9"
    assert (workdir / "latest" / "copy_99").exists()


def test_a_best_one_of_a_step_that_is_redone_is_deleted(workdir):
    for step in (9, 12):
        (workdir / "latest" / str(step)).rename(workdir / f"lost_{step}")
    found = recover(workdir, like=state_of(0))
    assert int(found.state.step) == 8
    assert found.best is None
    assert steps_saved(workdir, "best") == []


def test_nothing_is_found_where_no_run_was(tmp_path):
    assert recover(tmp_path / "new", like=state_of(0)) is None
    assert not (tmp_path / "new").exists()
