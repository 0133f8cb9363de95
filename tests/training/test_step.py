"""The training step gives the same numbers on one device or many, in one batch or microbatches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mtmamba_jax.devices.sharding import create_mesh, jit_on, put_batch, state_sharding
from mtmamba_jax.models.layers import drop_path
from mtmamba_jax.models.mtmamba import abstract_build
from mtmamba_jax.models.plus import ConvHeads
from mtmamba_jax.models.weights import split_model
from mtmamba_jax.tasks.labels import resize_logits
from mtmamba_jax.tasks.losses import multitask_loss
from mtmamba_jax.tasks.table import select
from mtmamba_jax.training.optimizer import create_optimizer
from mtmamba_jax.training.state import abstract_state, create_state, initial_state
from mtmamba_jax.training.step import create_train_step
from tests.resizing import resized_by_opencv
from tests.tiny import tiny_config

STEPS = 3


def make_batches(config, tasks):
    random = np.random.default_rng(0)
    count = config.train.batch_size
    shape = (count, *(n * config.data.label_scale for n in config.data.size))
    for _ in range(STEPS):
        batch = {
            "images": random.normal(size=(count, *config.data.size, 3)).astype(np.float32),
            "mask": np.ones(count, bool),
        }
        for task in tasks:
            label = random.integers(0, 2, size=(*shape, task.label_channels))
            # A different number of ignored pixels in each image.
            label[random.uniform(size=shape) < 0.3 * random.uniform(size=(shape[0], 1, 1))] = 255
            batch[task.name] = label.astype(task.label_dtype)
        yield batch


class PixelModel(nnx.Module):
    """Stands in for MTMamba in tests of the step itself: a linear map of each pixel."""

    def __init__(self, tasks, drop_path_rate):
        rngs = nnx.Rngs(0)
        self.drop_path_rate = drop_path_rate
        self.projections = nnx.Dict(
            {task.name: nnx.Linear(3, task.channels, rngs=rngs) for task in tasks}
        )

    def __call__(self, images, *, training, rngs):
        x = drop_path(images, self.drop_path_rate, rngs.drop_path() if training else None)
        return {name: projection(x) for name, projection in self.projections.items()}


class NormalisingModel(nnx.Module):
    """MTMamba++'s heads, which have BatchNorm, on the pixels themselves."""

    def __init__(self, tasks):
        self.heads = ConvHeads(tasks, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))

    def __call__(self, images, *, training, rngs):
        features = jnp.stack([images] * len(self.heads.names))
        logits = self.heads(features, training=training)
        return {name: resize_logits(x, images.shape[1:3]) for name, x in logits.items()}


def place(model, optimizer, mesh):
    graph, parameters = split_model(model)
    state = initial_state(graph, parameters, optimizer)
    layout = state_sharding(state, mesh)
    return graph, jax.device_put(state, layout), layout


def create_real_state(config, tasks, optimizer, mesh):
    return create_state(config.model, tasks, config.seed, optimizer, mesh)


def create_pixel_state(config, tasks, optimizer, mesh):
    return place(PixelModel(tasks, config.model.decoder_drop_path_rate), optimizer, mesh)


def create_normalising_state(config, tasks, optimizer, mesh):
    return place(NormalisingModel(tasks), optimizer, mesh)


def run(config, devices, create=create_real_state, fsdp=1):
    """Returns the numbers of a few steps with plain gradient descent, which forgives nothing."""
    tasks = select(config.tasks.set, config.tasks.names)
    mesh = create_mesh(devices, fsdp=fsdp, devices=jax.devices()[:devices])
    optimizer = optax.sgd(0.05)
    graph, state, layout = create(config, tasks, optimizer, mesh)
    step = create_train_step(config, graph, tasks, optimizer, mesh, layout)
    history = []
    for batch in make_batches(config, tasks):
        state, numbers = step(state, put_batch(batch, mesh))
        history.append({name: float(value) for name, value in numbers.items()})
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(layout), strict=True):
        assert leaf.addressable_shards[0].data.shape == place.shard_shape(leaf.shape)
    return history


def assert_same_history(found, wanted, rtol):
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=rtol, err_msg=name)


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one():
    assert len(jax.devices()) >= 8
    config = tiny_config(train__batch_size="8")
    # The bound of the project; only the order of float32 sums differs.
    assert_same_history(run(config, devices=8), run(config, devices=1), rtol=1e-5)


@pytest.mark.parametrize(
    "create",
    [create_normalising_state, pytest.param(create_real_state, marks=pytest.mark.slow)],
)
def test_batch_norm_is_over_the_whole_batch_on_any_number_of_devices(create):
    config = tiny_config(model__name="mtmamba_plus", train__batch_size="4")

    def losses(history):
        return [{k: v for k, v in numbers.items() if "loss" in k} for numbers in history]

    one = run(config, 1, create)
    for found in (run(config, 4, create), run(config, 2, create, fsdp=2)):
        assert_same_history(found[:1], one[:1], rtol=1e-5)
        # Normalising by small batches magnifies rounding in the gradients of later steps.
        assert_same_history(losses(found), losses(one), rtol=1e-5)


@pytest.mark.parametrize(
    "create",
    [create_normalising_state, pytest.param(create_real_state, marks=pytest.mark.slow)],
)
def test_running_statistics_follow_the_batches_and_are_not_learned(create):
    config = tiny_config(model__name="mtmamba_plus", optimizer__weight_decay="0.1")
    tasks = select(config.tasks.set, config.tasks.names)
    mesh = create_mesh(2, devices=jax.devices()[:1])
    optimizer = create_optimizer(config.optimizer, config.train.steps)
    graph, state, layout = create(config, tasks, optimizer, mesh)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.optimizer)]
    statistics = ("mean", "var", "batches")
    assert not [name for name in names if any(each in name for each in statistics)]
    before = jax.tree.map(np.copy, state.parameters)
    step = create_train_step(config, graph, tasks, optimizer, mesh, layout)
    batch = next(make_batches(config, tasks))
    after = step(state, put_batch(batch, mesh))[0].parameters

    def normalised(parameters, images):
        """Returns the input of a head's BatchNorm in that step."""
        model, seen = nnx.merge(graph, parameters), []
        model.heads.heads["depth"].norm = lambda x, **settings: seen.append(x) or x
        key = jax.random.fold_in(jax.random.key(config.seed), 0)
        model(images, training=True, rngs=nnx.Rngs(drop_path=key))
        return seen[0]

    x = jit_on(mesh, normalised)(before, batch["images"])
    norm = after["heads"]["heads"]["depth"]["norm"]
    mean, variance = (f(x, (0, 1, 2)) for f in (np.mean, np.var))
    np.testing.assert_allclose(norm["mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm["var"], 0.9 + 0.1 * variance, rtol=1e-4)
    assert after["heads"]["heads"]["depth"]["batches"] == 1


def test_microbatches_are_refused_with_batch_norm():
    config = tiny_config(model__name="mtmamba_plus", train__microbatches="2")
    with pytest.raises(
        ValueError, match=r"train\.microbatches=2 does not work with 'mtmamba_plus'"
    ):
        run(config, 1, create_normalising_state)


@pytest.mark.slow
def test_a_split_state_gives_the_losses_of_a_replicated_one():
    config = tiny_config(train__batch_size="8")
    assert_same_history(run(config, 4, fsdp=2), run(config, 1), rtol=1e-5)


def test_a_split_state_gives_each_device_little_more_than_its_share():
    config = tiny_config(model__encoder="swin_tiny")
    tasks = select(config.tasks.set, config.tasks.names)
    built = abstract_build(config.model, tasks)
    state, layout = abstract_state(*built, optax.adamw(1e-4), create_mesh(8, fsdp=4))
    leaves = jax.tree.leaves(state)
    places = jax.tree.leaves(layout)
    held = sum(
        math.prod(place.shard_shape(v.shape)) for v, place in zip(leaves, places, strict=True)
    )
    assert held < 0.27 * sum(v.size for v in leaves)


def test_microbatches_give_the_losses_of_the_whole_batch():
    config = tiny_config(train__batch_size="8", model__decoder_drop_path_rate="0.0")
    whole = run(config, 1, create_pixel_state)
    config = config.replace(train={"microbatches": 4})
    # Losses are means over images, so parts add up to the whole but for rounding.
    assert_same_history(run(config, 2, create_pixel_state), whole, rtol=1e-5)


def test_microbatches_without_a_label_do_not_enter_the_mean_of_a_loss():
    config = tiny_config(train__batch_size="4", model__decoder_drop_path_rate="0.0")
    tasks = select(config.tasks.set, config.tasks.names)
    batch = next(make_batches(config, tasks))
    depth = next(task for task in tasks if task.name == "depth")
    batch["depth"][1:] = depth.ignore

    def numbers(config):
        mesh = create_mesh(1, devices=jax.devices()[:1])
        graph, state, layout = create_pixel_state(config, tasks, optax.sgd(0.05), mesh)
        step = create_train_step(config, graph, tasks, optax.sgd(0.05), mesh, layout)
        return step(state, put_batch(batch, mesh))[1]

    whole = numbers(config)
    assert whole["loss/depth"] > 0
    assert (whole["labelled/depth"], whole["labelled/semseg"]) == (1, 4)
    for name, value in numbers(config.replace(train={"microbatches": 4})).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-5, err_msg=name)


def test_labels_on_a_finer_grid_are_compared_with_enlarged_logits():
    config = tiny_config(data__label_scale="2", model__decoder_drop_path_rate="0.0")
    tasks = select(config.tasks.set, config.tasks.names)
    batch = next(make_batches(config, tasks))
    assert batch["depth"].shape == (2, 64, 128, 1)
    logits = PixelModel(tasks, 0.0)(batch["images"], training=False, rngs=None)
    total, losses = multitask_loss(
        tasks,
        {name: resized_by_opencv(value, (64, 128)) for name, value in logits.items()},
        batch,
        weights=config.loss.weights,
        scheme=config.loss.scheme,
        reduction=config.loss.reduction,
    )
    found = run(config, 1, create_pixel_state)[0]
    # Float32 rounding in another order of the interpolation and of sums over 16,384 pixels.
    np.testing.assert_allclose(found["loss"], total, rtol=1e-5)
    for name, value in losses.items():
        np.testing.assert_allclose(found[f"loss/{name}"], value.mean, rtol=1e-5)


def test_eight_devices_give_the_losses_of_one_with_labels_on_a_finer_grid():
    config = tiny_config(
        train__batch_size="8", data__label_scale="2", model__decoder_drop_path_rate="0.0"
    )
    one, eight, shared = (
        run(config, devices, create_pixel_state, fsdp) for devices, fsdp in ((1, 1), (8, 1), (4, 2))
    )
    assert_same_history(eight, one, rtol=1e-5)
    assert_same_history(shared, one, rtol=1e-5)


def test_training_drops_paths():
    off, on = (
        run(tiny_config(model__decoder_drop_path_rate=rate), 1, create_pixel_state)
        for rate in ("0.0", "0.5")
    )
    assert off[0]["loss"] != on[0]["loss"]
