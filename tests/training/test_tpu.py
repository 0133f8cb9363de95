"""Training on a TPU gives the losses of a CPU: `-m tpu`, see CONTRIBUTING.md."""

import jax
import numpy as np
import optax
import pytest

from mtmamba_jax.devices.sharding import create_mesh, put_batch
from mtmamba_jax.tasks.table import select
from mtmamba_jax.training.state import create_state
from mtmamba_jax.training.step import create_train_step
from tests.tiny import tiny_config
from tests.training.test_step import make_batches

STEPS = 20


def losses(config, device, steps):
    """Returns the losses of a few steps with plain gradient descent on one device."""
    tasks = select(config.tasks.set, config.tasks.names)
    mesh, optimizer = create_mesh(1, devices=[device]), optax.sgd(0.01)
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        graph, state, layout = create_state(config.model, tasks, config.seed, optimizer, mesh)
        step = create_train_step(config, graph, tasks, optimizer, mesh, layout)
        batch, *_ = make_batches(config, tasks)
        found = []
        for _ in range(steps):
            state, numbers = step(state, put_batch(batch, mesh))
            found.append(float(numbers["loss"]))
    return found


@pytest.mark.tpu
@pytest.mark.skipif(jax.default_backend() != "tpu", reason="needs a TPU")
def test_twenty_steps_give_the_losses_of_a_cpu():
    # Widths that are multiples of 128, as the kernels need.
    config = tiny_config(
        model__encoder="swin_base",
        model__state_size="16",
        data__size="(64, 96)",
        train__batch_size="1",
    )
    found, wanted = (losses(config, jax.devices(name)[0], STEPS) for name in ("tpu", "cpu"))
    assert wanted[-1] < wanted[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


def test_the_helper_gives_the_same_losses_twice_on_a_cpu():
    config = tiny_config(train__batch_size="1")
    first, second = (losses(config, jax.devices("cpu")[0], 2) for _ in range(2))
    assert first == second
