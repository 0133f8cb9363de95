"""The training step: one device or many, one part or several, the same numbers."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from mtmamba_jax.sharding import DATA_AXIS, create_mesh, put_batch, replicated
from mtmamba_jax.tasks import select
from mtmamba_jax.training.state import build, initial_state
from mtmamba_jax.training.step import create_train_step
from tests.tiny import tiny_config

STEPS = 3


def make_batches(config, tasks):
    random = np.random.default_rng(0)
    shape = (config.train.batch_size, *config.data.size)
    for _ in range(STEPS):
        batch = {
            "images": random.normal(size=(*shape, 3)).astype(np.float32),
            "mask": np.ones(shape[0], bool),
        }
        for task in tasks:
            label = random.integers(0, 2, size=(*shape, task.label_channels))
            # A different number of ignored pixels in each image.
            label[random.uniform(size=shape) < 0.3 * random.uniform(size=(shape[0], 1, 1))] = 255
            batch[task.name] = label.astype(task.label_dtype)
        yield batch


def run(config, devices):
    """Returns the numbers of a few steps with plain gradient descent, which forgives nothing."""
    tasks = select(config.tasks.set, config.tasks.names)
    graph, parameters = build(config, tasks)
    mesh = jax.make_mesh(
        (devices,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    optimizer = optax.sgd(0.05)
    state = jax.device_put(initial_state(parameters, optimizer), replicated(mesh))
    step = create_train_step(config, graph, tasks, optimizer, mesh)
    history = []
    for batch in make_batches(config, tasks):
        state, numbers = step(state, put_batch(batch, mesh))
        history.append({name: float(value) for name, value in numbers.items()})
    return history


def assert_same_history(found, wanted, rtol):
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=rtol, err_msg=name)


@pytest.fixture(scope="module")
def one_device():
    return run(tiny_config(train__batch_size="8", model__decoder_drop_path_rate="0.2"), devices=1)


def test_eight_devices_give_the_losses_of_one(one_device):
    assert len(jax.devices()) >= 8
    config = tiny_config(train__batch_size="8", model__decoder_drop_path_rate="0.2")
    # The bound of the project; only the order of float32 sums differs.
    assert_same_history(run(config, devices=8), one_device, rtol=1e-5)


def test_microbatches_give_the_losses_of_the_whole_batch(one_device):
    config = tiny_config(train__batch_size="8", model__decoder_drop_path_rate="0.0")
    whole = run(config, devices=1)
    config.train.microbatches = 4
    # Losses are means over images, so parts add up to the whole but for rounding.
    assert_same_history(run(config, devices=2), whole, rtol=1e-5)
    assert whole[0]["loss"] != one_device[0]["loss"]  # drop path does something


def test_batch_that_does_not_split_is_refused():
    config = tiny_config(train__microbatches="3")
    with pytest.raises(ValueError, match=r"batch_size=4 does not split into train\.microbatches=3"):
        create_train_step(config, None, (), None, create_mesh(4))


def test_mesh_takes_as_many_devices_as_divide_the_batch(caplog):
    assert create_mesh(8).size == 8
    assert create_mesh(6).size == 6
    assert "Using 6 of 8 devices: batches of 6 split" in caplog.text
    assert create_mesh(16, 8).size == 8
    assert create_mesh(16, 4).size == 4
