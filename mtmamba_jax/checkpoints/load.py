"""Loads the trained model of a work directory."""

import dataclasses
from typing import Any

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from mtmamba_jax.checkpoints.run_directory import CheckpointKind, RunDirectory, explain_errors
from mtmamba_jax.config import Config
from mtmamba_jax.devices.sharding import create_mesh, replicated, single_device_mesh
from mtmamba_jax.models.mtmamba import MTMamba, abstract_build
from mtmamba_jax.tasks.table import Task


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model on devices; `nnx.merge(graph, parameters)` is the model.

    Attributes:
      parameters: The weights, replicated over `mesh`.
      mesh: The devices, for batches of the size that was asked for.
      step: The number of updates that the weights have seen.
      details: What was saved beside the weights: versions, and a best checkpoint's scores.
    """

    directory: RunDirectory
    config: Config
    graph: nnx.GraphDef
    parameters: dict
    mesh: Mesh
    step: int
    details: dict[str, Any]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that the model predicts."""
        return self.config.tasks.selected


def load_run(
    path: epath.PathLike, checkpoint: CheckpointKind = "best", *, one_device: bool = False
) -> Run:
    """Loads a run for the devices that evaluation uses, or for one device; see `load`."""
    directory = RunDirectory(path)
    config = directory.read_config()
    graph, abstract = abstract_build(config.model, config.tasks.selected)
    mesh = single_device_mesh() if one_device else create_mesh(config.eval.batch_size)
    found = directory.newest(checkpoint)
    if found is None:
        raise ValueError(
            f"{directory} has no {checkpoint} checkpoint yet. One is written every "
            f"train.eval_every={config.train.eval_every} (best) or train.checkpoint_every="
            f"{config.train.checkpoint_every} (latest) steps."
        )
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), abstract
    )
    other = "latest" if checkpoint == "best" else "best"
    what = f"The {checkpoint} checkpoint of {directory}, step {found.step},"
    with explain_errors(what, f"Try --checkpoint={other}."):
        parameters = found.read({"parameters": placed})["parameters"]
        details = found.read_details()
    return Run(directory, config, graph, parameters, mesh, found.step, details)


def load(path: epath.PathLike, checkpoint: CheckpointKind = "best") -> MTMamba:
    """Returns the trained model of a work directory.

    It maps normalised images to logits, see `MTMamba.__call__`; `Predictor` maps photos to
    quantities.

    Args:
      path: The work directory of a training run, or one that the command `convert` wrote.
      checkpoint: "best" or "latest".

    Raises:
      ValueError: If there is no run or no such checkpoint, or if it is damaged.
      OSError: If reading failed for a reason that may be transient.
    """
    run = load_run(path, checkpoint, one_device=True)
    return nnx.merge(run.graph, run.parameters)
