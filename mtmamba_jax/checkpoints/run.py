"""A finished or unfinished run on disk: its configuration and weights, ready to use."""

from __future__ import annotations

import dataclasses

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtmamba_jax import config as configuration
from mtmamba_jax.checkpoints.saved import (
    KINDS,
    naming_errors,
    newest,
    read_details,
    read_parameters,
    steps_saved,
)
from mtmamba_jax.devices.sharding import create_mesh, replicated
from mtmamba_jax.files.paths import check_writable_scheme
from mtmamba_jax.models.mtmamba import ModelSettings, abstract_build
from mtmamba_jax.tasks import Task

CONFIG_FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model.

    Attributes:
      config: that it was trained with.
      graph: the model's structure.
      parameters: its weights, on every device of `mesh`.
      tasks: what it predicts.
      mesh: devices for batches of `batch_size`.
      step: of the checkpoint.
      details: saved with the checkpoint: versions, and scores with a best one.
    """

    config: ConfigDict
    graph: nnx.GraphDef
    parameters: dict
    tasks: tuple[Task, ...]
    mesh: Mesh
    step: int
    details: dict


def load_run(workdir: epath.PathLike, checkpoint: str, *, batch_size: int | None = None) -> Run:
    """Reads a run from its work directory.

    Args:
      workdir: as given to training.
      checkpoint: "best" or "latest".
      batch_size: of the batches to come; that of evaluation by default.

    Raises:
      ValueError: there is no run or no such checkpoint there, or it is damaged.
      OSError: reading failed for a reason that may pass.
    """
    check_writable_scheme(workdir, "--workdir")
    workdir = epath.Path(workdir)
    config = saved_config(workdir)
    tasks = configuration.tasks(config)
    graph, abstract = abstract_build(ModelSettings(**config.model), tasks)
    mesh = create_mesh(batch_size or config.eval.batch_size)
    found = newest(workdir, checkpoint)
    if found is None:
        raise ValueError(
            f"{workdir} has no {checkpoint} checkpoint yet. One is written every "
            f"train.eval_every={config.train.eval_every} (best) or train.checkpoint_every="
            f"{config.train.checkpoint_every} (latest) steps."
        )
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), abstract
    )
    step, other = int(found.name), "latest" if checkpoint == "best" else "best"
    what = f"The {checkpoint} checkpoint of {workdir}, step {step},"
    with naming_errors(what, f"Try --checkpoint={other}."):
        parameters, details = read_parameters(found, placed), read_details(found)
    return Run(config, graph, parameters, tasks, mesh, step, details)


def saved_config(workdir: epath.Path) -> ConfigDict:
    """Returns a run's configuration: of its file or, where that was lost, of its checkpoints.

    Raises:
      ValueError: there is none, or it is not of this version.
    """
    path = workdir / CONFIG_FILE
    if path.exists():
        return configuration.read(path)
    for kind in KINDS:
        for step in steps_saved(workdir, kind):
            checkpoint = workdir / kind / str(step)
            found = _config_beside(checkpoint)
            if found:
                return configuration.parse(found, f"The configuration in {checkpoint}")
    if _is_encoder(workdir):
        raise ValueError(
            f"{workdir} holds weights of an encoder alone, no run (no {CONFIG_FILE}). Train with "
            f"them: --config.init.encoder={workdir}, and another --workdir."
        )
    raise ValueError(
        f"{workdir} holds no run (no {CONFIG_FILE}). The command train, with --workdir={workdir}, "
        "makes one."
    )


def _is_encoder(workdir: epath.Path) -> bool:
    """Whether the command convert put an encoder's weights there: a checkpoint without a run."""
    best = newest(workdir, "best")
    try:
        return best is not None and not read_details(best)["config"]
    except (OSError, ValueError, KeyError):
        return False


def _config_beside(checkpoint: epath.Path) -> dict | None:
    """Returns the configuration in a checkpoint's details, None where they cannot be read."""
    try:
        return read_details(checkpoint)["config"]
    except (OSError, ValueError, KeyError):
        return None


def is_finished(workdir: epath.Path, config: ConfigDict) -> bool:
    """Whether a work directory holds the last step of a run of that configuration."""
    last = max(steps_saved(workdir, "latest"), default=0)
    return last >= config.train.steps and bool(steps_saved(workdir, "best"))
