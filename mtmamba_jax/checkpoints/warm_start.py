"""Starts a model or its encoder from the weights of another run or of PyTorch."""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from mtmamba_jax.checkpoints.run_directory import Checkpoint, RunDirectory, explain_errors
from mtmamba_jax.config.settings import InitSettings
from mtmamba_jax.convert import encoder_from_torch, from_torch
from mtmamba_jax.convert.weight_files import HUB, is_weight_file, read_weights
from mtmamba_jax.messages import bulleted

RUN_FLAG, ENCODER_FLAG = "config.init.run", "config.init.encoder"
ENCODER = "encoder"  # the part of the model

Shapes = Mapping[str, tuple[int, ...]]
"""{path of a parameter, with slashes: shape}."""


def warm_start(init: InitSettings, graph: nnx.GraphDef, parameters: dict) -> dict:
    """Replaces initial parameters by those that `config.init` names.

    `init.run` replaces all of them, then `init.encoder` the encoder's. Each names a work directory,
    of which the best checkpoint is read (the latest if there is no best one yet), or a file of
    PyTorch weights, see `convert.weight_files`.

    Returns the new parameters, placed on devices like the initial ones.

    Raises:
      ValueError: If there is no such checkpoint or file, or if its parameters differ in name or
        shape; the message lists them.
    """
    for flag, name in _sources(init).items():
        if flag == ENCODER_FLAG and ENCODER not in parameters:
            raise ValueError(f"{flag} is set, but the model has no part named {ENCODER!r}.")
        if is_weight_file(name):
            parameters = _read_file(flag, name, graph, parameters)
        else:
            like = {ENCODER: parameters[ENCODER]} if flag == ENCODER_FLAG else parameters
            parameters = parameters | _read_run(flag, name, like)
    return parameters


def check_sources(init: InitSettings) -> None:
    """Raises ValueError unless there is a checkpoint or file wherever `config.init` names one."""
    for flag, name in _sources(init).items():
        if name.startswith(HUB):
            continue
        if not is_weight_file(name):
            _find_checkpoint(flag, name)
        elif not pathlib.Path(name).exists():
            raise ValueError(f"{flag}={name}: there is no such file.")


def _sources(init: InitSettings) -> dict[str, str]:
    """Returns {flag: name} of the flags that are set, in the order of application."""
    sources = {RUN_FLAG: init.run, ENCODER_FLAG: init.encoder}
    return {flag: name for flag, name in sources.items() if name}


def _read_file(flag: str, source: str, graph: nnx.GraphDef, parameters: dict) -> dict:
    model = nnx.merge(graph, jax.tree.map(ocp.utils.to_shape_dtype_struct, parameters))
    try:
        tensors = read_weights(source)
        if flag == ENCODER_FLAG:
            found = {ENCODER: nnx.to_pure_dict(encoder_from_torch(tensors, model.encoder))}
        else:
            found = nnx.to_pure_dict(from_torch(tensors, model))
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error
    print(f"{flag}: weights of {source}", flush=True)
    return _replace(parameters, found)


def _replace(parameters: dict, found: Mapping) -> dict:
    """Returns parameters with some replaced, on the same devices."""
    replaced = dict(parameters)
    for name in parameters.keys() & found.keys():
        old, new = parameters[name], found[name]
        if isinstance(old, dict):
            replaced[name] = _replace(old, new)
        else:
            replaced[name] = jax.make_array_from_callback(
                old.shape, old.sharding, np.asarray(new).__getitem__
            )
    return replaced


def _read_run(flag: str, path: str, like: dict) -> dict:
    """Returns the parameters of a run's checkpoint that `like` has."""
    checkpoint = _find_checkpoint(flag, path)
    folder = checkpoint.path / "parameters"
    reading = (f"{flag}: checkpoint {checkpoint.path}", "Choose another run.")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        with explain_errors(*reading):
            checkpoint.check_files()
            saved = checkpointer.metadata(folder).item_metadata.tree
        _check_shapes(flag, path, _shapes(saved, like), _shapes(like, like))
        with explain_errors(*reading):
            placed = ocp.checkpoint_utils.construct_restore_args(like)
            args = ocp.args.PyTreeRestore(item=like, restore_args=placed, partial_restore=True)
            found = checkpointer.restore(folder, args=args)
    print(f"{flag}: weights of {checkpoint.path}", flush=True)
    return found


def _find_checkpoint(flag: str, path: str) -> Checkpoint:
    """Returns a run's best checkpoint, or its latest if there is no best one."""
    directory = RunDirectory(path, flag)
    found = directory.newest("best") or directory.newest("latest")
    if found is not None:
        return found
    raise ValueError(
        f"{flag}={path} holds no checkpoint. It must be the work directory of a run that has "
        "saved one (with a folder best/ or latest/), or a file of PyTorch weights (.safetensors, "
        ".pth, ..., or hf:REPO)."
    )


def _shapes(tree: Mapping, like: Mapping) -> Shapes:
    """Returns the shapes below the keys that `like` has."""
    tree = {name: part for name, part in tree.items() if name in like}
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_shapes(flag: str, path: str, saved: Shapes, wanted: Shapes) -> None:
    others = [n for n in sorted(wanted.keys() & saved.keys()) if saved[n] != wanted[n]]
    differing = {
        "missing from it": sorted(wanted.keys() - saved.keys()),
        "missing from the model": sorted(saved.keys() - wanted.keys()),
        "other shapes (its -> the model's)": [
            f"{name} {list(saved[name])} -> {list(wanted[name])}" for name in others
        ],
    }
    lines = [f"{what}:{bulleted(names)}" for what, names in differing.items() if names]
    if not lines:
        return
    if others and all(name.endswith("position_bias") for name in others):
        remedy = "Only PyTorch files have their position biases resampled to other window sizes."
    elif flag == RUN_FLAG:
        remedy = f"Use a run of the same model and tasks, or only its encoder: {ENCODER_FLAG}."
    else:
        remedy = "Use a run with the same config.model.encoder."
    raise ValueError(
        f"The weights of {flag}={path} do not fit the model:\n  "
        + "\n  ".join(lines)
        + f"\n{remedy}"
    )
