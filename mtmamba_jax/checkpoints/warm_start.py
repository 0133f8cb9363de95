"""Weights to begin with, of another run or of PyTorch: all of them, or an encoder's."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from mtmamba_jax.checkpoints.quiet import quiet_orbax
from mtmamba_jax.checkpoints.saved import KINDS, naming_errors, newest
from mtmamba_jax.convert import encoder_from_torch, from_torch
from mtmamba_jax.convert.weight_files import HUB, is_file_of_weights, read_weights
from mtmamba_jax.messages import bulleted

ENCODER = "encoder"

Shapes = Mapping[str, tuple[int, ...]]
"""{parameter's path, with slashes: shape}."""


def warm_start(settings: ConfigDict, graph: nnx.GraphDef, parameters: dict) -> dict:
    """Returns parameters with those that `config.init` names in their place.

    `init.run` replaces all, then `init.encoder` the encoder's. Each names a run, of which the best
    checkpoint is read, or the latest where it has no best yet; or a file of PyTorch weights, see
    `weight_files`. Arrays are placed as those that they replace.

    Args:
      settings: `config.init`.
      graph: the model's structure.
      parameters: the model's, a nested dict.

    Raises:
      ValueError: there is no checkpoint or file, or its parameters differ in name or shape; the
        message lists them.
    """
    for key in ("run", ENCODER):
        if settings[key] is None:
            continue
        if key == ENCODER and ENCODER not in parameters:
            raise ValueError("init.encoder is set, but the model has no part named 'encoder'.")
        name = str(settings[key])  # 3 is a number to those who parse --config.init.run=3
        if is_file_of_weights(name):
            parameters = _read_file(key, name, graph, parameters)
        else:
            like = {ENCODER: parameters[ENCODER]} if key == ENCODER else parameters
            parameters = parameters | _read_run(f"init.{key}", name, like)
    return parameters


def _read_file(key: str, source: str, graph: nnx.GraphDef, parameters: dict) -> dict:
    """Returns parameters with those of a file of PyTorch weights in their place."""
    model = nnx.merge(graph, jax.tree.map(ocp.utils.to_shape_dtype_struct, parameters))
    try:
        tensors = read_weights(source)
        if key == ENCODER:
            found = {ENCODER: nnx.to_pure_dict(encoder_from_torch(tensors, model.encoder))}
        else:
            found = nnx.to_pure_dict(from_torch(tensors, model))
    except ValueError as error:
        raise ValueError(f"config.init.{key}: {error}") from error
    print(f"config.init.{key}: weights of {source}", flush=True)
    return _replaced(parameters, found)


def _replaced(parameters: dict, found: Mapping) -> dict:
    """Returns parameters with those that were found in their place, on the same devices."""
    return {
        name: part
        if name not in found
        else _replaced(part, found[name])
        if isinstance(part, dict)
        else jax.make_array_from_callback(
            part.shape, part.sharding, np.asarray(found[name]).__getitem__
        )
        for name, part in parameters.items()
    }


def _read_run(key: str, workdir: str, like: dict) -> dict:
    """Returns the parameters of a run's checkpoint that `like` has."""
    step = find_checkpoint(key, workdir)
    folder = step / "parameters"
    reading = (f"config.{key}: checkpoint {step}", "Name another run.")
    quiet_orbax()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        with naming_errors(*reading):
            saved = checkpointer.metadata(folder).item_metadata.tree
        _check(key, workdir, _shapes(saved, like), _shapes(like, like))
        with naming_errors(*reading):
            found = checkpointer.restore(
                folder,
                args=ocp.args.PyTreeRestore(
                    item=like,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                    partial_restore=True,
                ),
            )
    print(f"config.{key}: weights of {step}", flush=True)
    return found


def check_places(settings: ConfigDict) -> None:
    """Checks that there is a checkpoint or a file where `config.init` names one.

    Raises:
      ValueError: there is none.
    """
    for key, name in settings.items():
        if name is None or str(name).startswith(HUB):
            continue
        if not is_file_of_weights(str(name)):
            find_checkpoint(f"init.{key}", str(name))
        elif not pathlib.Path(name).exists():
            raise ValueError(f"config.init.{key}={name}: there is no such file.")


def find_checkpoint(key: str, workdir: str) -> epath.Path:
    """Returns the folder of a run's best checkpoint, or of its latest where it has no best.

    Args:
      key: of the configuration that names the run, for the message.
      workdir: of the run.

    Raises:
      ValueError: there is none.
    """
    for kind in KINDS:
        found = newest(workdir, kind)
        if found is not None:
            return found
    raise ValueError(
        f"config.{key}={workdir} holds no checkpoint. It must be the work directory of a run that "
        "has saved one (there is a folder best/ or latest/ in it), or a file of PyTorch weights "
        "(.safetensors, .pth, ..., or hf:REPO)."
    )


def _shapes(tree: Mapping, like: Mapping) -> Shapes:
    """Returns the shapes below the keys that `like` has."""
    tree = {name: part for name, part in tree.items() if name in like}
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _other_shapes(saved: Shapes, wanted: Shapes) -> list[str]:
    return [n for n in sorted(wanted.keys() & saved.keys()) if saved[n] != wanted[n]]


def _check(key: str, workdir: str, saved: Shapes, wanted: Shapes) -> None:
    names = {
        "it lacks": sorted(wanted.keys() - saved.keys()),
        "the model lacks": sorted(saved.keys() - wanted.keys()),
        "other shapes (its -> the model's)": [
            f"{name} {list(saved[name])} -> {list(wanted[name])}"
            for name in _other_shapes(saved, wanted)
        ],
    }
    differing = [f"{what}:{bulleted(found)}" for what, found in names.items() if found]
    if differing:
        others = _other_shapes(saved, wanted)
        if others and all(name.endswith("position_bias") for name in others):
            remedy = "Position biases of other windows are resampled from PyTorch's files alone."
        elif key == "init.run":
            remedy = (
                "Take a run of the same model and tasks, or its encoder alone: config.init.encoder."
            )
        else:
            remedy = "Take a run whose config.model.encoder is the same."
        raise ValueError(
            f"The weights of config.{key}={workdir} do not fit the model:\n  "
            + "\n  ".join(differing)
            + f"\n{remedy}"
        )
