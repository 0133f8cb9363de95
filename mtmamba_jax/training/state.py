"""What training carries from step to step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtmamba_jax.devices.sharding import FSDP_AXIS, split_state
from mtmamba_jax.models.mtmamba import ModelSettings, abstract_build, build
from mtmamba_jax.models.weights import split_learned
from mtmamba_jax.tasks import Task


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Plain arrays, for optax and Orbax.

    Randomness (drop path) and the position in the data are functions of the seed and the step, so
    the step is all that a resumed run needs of them.

    Attributes:
      step: int32, updates done.
      parameters: the model's weights (`models.weights`) as a nested dict.
      optimizer: optax's state.
    """

    step: jax.Array
    parameters: dict
    optimizer: optax.OptState


def create_state(
    config: ConfigDict,
    tasks: Sequence[Task],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> tuple[nnx.GraphDef, TrainState, TrainState]:
    """Returns the model's structure, the state before the first step, and its layout on a mesh.

    The layout has a sharding in place of each array. Where a state is split over devices it is
    made in parts: no device ever holds all of it.

    Raises:
      ValueError: a name in `config.model` is unknown.
    """
    settings = ModelSettings(**config.model)
    if mesh.shape[FSDP_AXIS] == 1:  # whole everywhere, and nothing to compile
        graph, parameters = build(settings, tasks, config.seed)
        state = initial_state(graph, parameters, optimizer)
        layout = split_state(state, mesh)
        return graph, jax.device_put(state, layout), layout
    graph, parameters = abstract_build(settings, tasks)
    _, layout = abstract_state(graph, parameters, optimizer, mesh)

    def make():
        return initial_state(*build(settings, tasks, config.seed), optimizer)

    return graph, jax.jit(make, out_shardings=layout)(), layout


def abstract_state(
    graph: nnx.GraphDef, parameters: dict, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """Returns the shapes of `initial_state`'s arrays and their layout on a mesh."""
    state = jax.eval_shape(lambda found: initial_state(graph, found, optimizer), parameters)
    return state, split_state(state, mesh)


def initial_state(
    graph: nnx.GraphDef, parameters: dict, optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns the state before the first step."""
    _, learned, _ = split_learned(graph, parameters)
    return TrainState(jnp.zeros((), jnp.int32), parameters, optimizer.init(learned))
