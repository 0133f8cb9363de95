"""Builds one training step as a single jitted function."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from mtmamba_jax.array_types import Batch
from mtmamba_jax.config import Config
from mtmamba_jax.devices.sharding import batch_sharding, jit_on, replicated
from mtmamba_jax.models.weights import split_learned, split_model
from mtmamba_jax.tasks.labels import resize_logits
from mtmamba_jax.tasks.losses import multitask_loss
from mtmamba_jax.tasks.table import Task
from mtmamba_jax.training.gradients import gradient_norms
from mtmamba_jax.training.optimizer import updates_made
from mtmamba_jax.training.state import TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def create_train_step(
    config: Config,
    graph: nnx.GraphDef,
    tasks: Sequence[Task],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    layout: TrainState,
) -> TrainStep:
    """Returns `step(state, batch) -> (state, numbers)`, which donates the given state.

    The numbers are scalars: `loss` (the total); `loss/<task>`, NaN if no pixel of the batch is
    labelled for the task; `labelled/<task>`, the number of losses in that mean (images, or 0 or 1
    batch, depending on `config.loss.reduction`); those of `gradient_norms`; and with
    `config.on_nonfinite="skip"` also `skipped`, the number of steps so far whose loss or gradient
    was not finite. Skipped steps leave parameters and optimizer, with its count, unchanged.

    Args:
      config: Gives `loss`, `train.microbatches`, `seed` and `on_nonfinite`.
      graph: The model's structure.
      tasks: The tasks with labels in the batch.
      optimizer: The optimizer that the state belongs to.
      mesh: The devices.
      layout: The state's shardings, as `create_state` returns them.
    """
    parts, seed, settings = config.train.microbatches, config.seed, config.loss

    def loss(learned, structure, statistics, batch, key):
        model = nnx.merge(structure, learned, statistics)
        logits = model(batch["images"], training=True, rngs=nnx.Rngs(drop_path=key))
        total, losses = multitask_loss(
            tasks,
            {t.name: resize_logits(logits[t.name], batch[t.name].shape[1:3]) for t in tasks},
            batch,
            weights=settings.weights,
            scheme=settings.scheme,
            reduction=settings.reduction,
        )
        return total, ((total, losses), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    def step(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        structure, learned, statistics = split_learned(graph, state.parameters)

        def gradient(learned, batch, key):
            return jax.grad(loss, has_aux=True)(learned, structure, statistics, batch, key)

        if parts == 1:
            gradients, ((total, losses), statistics) = gradient(learned, batch, key)
        elif statistics:
            raise ValueError(
                f"train.microbatches={parts} does not work with {config.model.name!r}, whose "
                "BatchNorm normalises over the whole batch. Use train.microbatches=1."
            )
        else:
            gradients, ((total, losses), _) = _accumulate(gradient, learned, batch, key, parts)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, learned)
        learned = optax.apply_updates(learned, updates)
        parameters = split_model(nnx.merge(structure, learned, statistics))[1]
        numbers = {"loss": total} | {f"loss/{name}": found.mean for name, found in losses.items()}
        numbers |= {f"labelled/{name}": parts * found.count for name, found in losses.items()}
        numbers |= gradient_norms(gradients, tasks)
        new = TrainState(state.step + 1, parameters, optimizer_state)
        if config.on_nonfinite == "skip":
            finite = jnp.isfinite(numbers["loss"]) & jnp.isfinite(numbers["gradient_norm"])
            kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
            new = dataclasses.replace(kept, step=new.step)
            numbers["skipped"] = new.step - updates_made(new.optimizer)
        return new, numbers

    return jit_on(
        mesh,
        step,
        in_shardings=(layout, batch_sharding(mesh)),
        out_shardings=(layout, replicated(mesh)),
        donate_argnums=0,
    )


def _accumulate(gradient, learned, batch, key, parts):
    """Averages over the parts of a batch, with one part in memory at a time."""
    # Every parts-th example, not consecutive ones: each part stays spread over all devices.
    batches = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0), batch
    )

    def add(total, part):
        index, batch = part
        found = gradient(learned, batch, jax.random.fold_in(key, index))
        return jax.tree.map(lambda a, b: a + b / parts, total, found), None

    shapes = jax.eval_shape(gradient, learned, jax.tree.map(lambda x: x[0], batches), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(parts), batches))[0]
