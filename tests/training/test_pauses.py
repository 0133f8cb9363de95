"""What is kept out of training while checkpoints are written beside it."""

import threading
import weakref

import jax.numpy as jnp

from mtmamba_jax.checkpoints.save import Checkpoints
from mtmamba_jax.training.pauses import keep_replaced
from mtmamba_jax.training.state import TrainState


def state_of(step):
    return TrainState(jnp.int32(step), {"kernel": jnp.arange(4.0)}, {})


def test_states_that_a_step_replaced_are_freed_once_nothing_is_written(tmp_path, monkeypatch):
    written = threading.Event()
    monkeypatch.setattr(Checkpoints, "_hand_over", lambda *arguments: written.wait())
    checkpoints = Checkpoints(tmp_path)
    step = keep_replaced(
        lambda state, batch: (state_of(state.step + 1), {}), checkpoints.is_writing
    )
    kernels = []
    state = state_of(0)
    checkpoints.save_latest(state)
    for _ in range(2):
        kernels.append(weakref.ref(state.parameters["kernel"]))
        state, _ = step(state, {})
        assert all(kernel() is not None for kernel in kernels)
    written.set()
    checkpoints.wait()
    kernels.append(weakref.ref(state.parameters["kernel"]))
    state, _ = step(state, {})
    assert all(kernel() is None for kernel in kernels)
    checkpoints.close()
