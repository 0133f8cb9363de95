"""One training step and one evaluation step, each a single jitted function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtmamba_jax.array_types import Batch
from mtmamba_jax.losses import multitask_loss
from mtmamba_jax.metrics import create_constant, create_metric
from mtmamba_jax.models.heads import resize
from mtmamba_jax.tasks import Task
from mtmamba_jax.training.sharding import replicated, split_batch
from mtmamba_jax.training.state import TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def create_train_step(
    config: ConfigDict,
    graph: nnx.GraphDef,
    tasks: Sequence[Task],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainStep:
    """Returns `step(state, batch) -> (state, numbers)`; the given state's memory is reused.

    Numbers: `loss` (the total), `loss/<task>`, `gradient_norm`; float32 scalars.

    Raises:
      ValueError: the batch does not split into `config.train.microbatches`.
    """
    parts = config.train.microbatches
    if parts < 1 or config.train.batch_size % parts:
        raise ValueError(
            f"train.batch_size={config.train.batch_size} does not split into "
            f"train.microbatches={parts} equal parts."
        )

    def loss(parameters, batch, key):
        model = nnx.merge(graph, parameters)
        logits = model(batch["images"], training=True, rngs=nnx.Rngs(drop_path=key))
        total, losses = multitask_loss(
            tasks,
            logits,
            batch,
            weights=config.loss.weights,
            scheme=config.loss.scheme,
            reduction=config.loss.reduction,
        )
        return total, {"loss": total} | {f"loss/{name}": v for name, v in losses.items()}

    gradient = jax.grad(loss, has_aux=True)

    def step(state, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        if parts == 1:
            gradients, numbers = gradient(state.parameters, batch, key)
        else:
            gradients, numbers = _accumulate(gradient, state.parameters, batch, key, parts)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        numbers["gradient_norm"] = optax.global_norm(gradients)
        return TrainState(state.step + 1, parameters, optimizer_state), numbers

    whole, split = replicated(mesh), split_batch(mesh)
    return jax.jit(
        step, in_shardings=(whole, split), out_shardings=(whole, whole), donate_argnums=0
    )


def _accumulate(gradient, parameters, batch, key, parts):
    """Means over the parts of a batch, one part in memory at a time."""
    # Every parts-th example, not consecutive ones: each part stays spread over all devices.
    batches = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0), batch
    )

    def add(total, part):
        index, batch = part
        found = gradient(parameters, batch, jax.random.fold_in(key, index))
        return jax.tree.map(lambda a, b: a + b / parts, total, found), None

    shapes = jax.eval_shape(gradient, parameters, jax.tree.map(lambda x: x[0], batches), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(parts), batches))[0]


def create_measure_step(tasks: Sequence[Task], mesh: Mesh) -> Callable:
    """Returns `step(logits, batch) -> {task: counts}` of each task's metric."""
    metrics = {task.name: create_metric(task) for task in tasks}

    def step(logits, batch):
        counts = {}
        for name, metric in metrics.items():
            label = batch[name]
            # Cityscapes' labels are finer than the network's input.
            fitted = resize(logits[name], label.shape[1:3])
            counts[name] = metric.measure(fitted, label, batch["mask"])
        return counts

    split = split_batch(mesh)
    return jax.jit(step, in_shardings=(split, split), out_shardings=replicated(mesh))


def create_constant_step(tasks: Sequence[Task], mesh: Mesh) -> Callable:
    """Returns `step(batch) -> {task: counts}` of each task's best constant prediction."""
    constants = {task.name: create_constant(task) for task in tasks}

    def step(batch):
        return {name: c.measure(batch[name], batch["mask"]) for name, c in constants.items()}

    return jax.jit(step, in_shardings=split_batch(mesh), out_shardings=replicated(mesh))


def create_predict_step(graph: nnx.GraphDef, mesh: Mesh) -> Callable:
    """Returns `step(parameters, images [b h w 3]) -> {task: logits}`."""

    def step(parameters: Mapping, images: jax.Array) -> dict[str, jax.Array]:
        return nnx.merge(graph, parameters)(images)

    whole, split = replicated(mesh), split_batch(mesh)
    return jax.jit(step, in_shardings=(whole, split), out_shardings=split)
