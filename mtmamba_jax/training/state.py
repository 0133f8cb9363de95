"""Creates the state that training carries from step to step, on one device or split over many."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from mtmamba_jax.devices.sharding import FSDP_AXIS, state_sharding
from mtmamba_jax.models.mtmamba import ModelSettings, abstract_build, build
from mtmamba_jax.models.weights import split_learned
from mtmamba_jax.tasks.table import Task


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Plain arrays, for optax and Orbax.

    Randomness (drop path) and the position in the data are functions of the seed and the step, so
    the step is all that a resumed run needs of them.

    Attributes:
      step: Number of updates done, an int32 scalar.
      parameters: The model's weights (`models.weights`), a nested dict.
    """

    step: jax.Array
    parameters: dict
    optimizer: optax.OptState

    def to_items(self) -> dict[str, Any]:
        """Returns the arrays as a checkpoint holds them; see `checkpoints.run_directory.ITEMS`."""
        rest = {"step": self.step, "optimizer": self.optimizer}
        return {"parameters": self.parameters, "rest": rest}

    @classmethod
    def from_items(cls, items: Mapping[str, Any]) -> Self:
        """Returns the state of a checkpoint's items."""
        return cls(parameters=items["parameters"], **items["rest"])


def create_state(
    model: ModelSettings,
    tasks: Sequence[Task],
    seed: int,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> tuple[nnx.GraphDef, TrainState, TrainState]:
    """Creates the state before the first step.

    A state that is split over devices is created in parts: no device ever holds all of it.

    Returns:
      The model's structure, the state, and its layout: a sharding in place of each array.
    """
    if mesh.shape[FSDP_AXIS] == 1:  # replicated: only the optimizer's state is compiled
        graph, parameters = build(model, tasks, seed)
        state = initial_state(graph, parameters, optimizer)
        layout = state_sharding(state, mesh)
        return graph, jax.device_put(state, layout), layout
    graph, parameters = abstract_build(model, tasks)
    _, layout = abstract_state(graph, parameters, optimizer, mesh)
    create = jax.jit(
        lambda: initial_state(*build(model, tasks, seed), optimizer), out_shardings=layout
    )
    return graph, create(), layout


def abstract_state(
    graph: nnx.GraphDef, parameters: dict, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """Returns the shapes of `initial_state`'s arrays and their layout on a mesh."""
    state = jax.eval_shape(lambda found: initial_state(graph, found, optimizer), parameters)
    return state, state_sharding(state, mesh)


def initial_state(
    graph: nnx.GraphDef, parameters: dict, optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns the state before the first step."""
    _, learned, _ = split_learned(graph, parameters)
    create = jax.jit(optimizer.init)  # eagerly, JAX would compile a program for each shape
    return TrainState(jnp.zeros((), jnp.int32), parameters, create(learned))
