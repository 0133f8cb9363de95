"""Weights of PyTorch as a run here: what a state dict holds, and a work directory or file of it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath
from flax import nnx

from mtmamba_jax import config as configuration
from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.checkpoints.save import CheckpointWriter
from mtmamba_jax.config import Config
from mtmamba_jax.convert import Contents, contents_of, encoder_from_torch, from_torch, to_torch
from mtmamba_jax.convert.state_dicts import check_not_whole, size_name
from mtmamba_jax.convert.weight_files import SAFETENSORS, TORCH, write_safetensors
from mtmamba_jax.files.paths import is_remote
from mtmamba_jax.models.mtmamba import MODELS, abstract_model
from mtmamba_jax.models.norm import LayerNorm
from mtmamba_jax.models.swin import SWIN_SIZES, Swin, SwinSize
from mtmamba_jax.models.weights import WEIGHTS, split_model
from mtmamba_jax.tasks import TASK_SETS

RECIPES = ("nyudv2", "pascal_context", "cityscapes")
"""Configurations that a model is recognised as by its tasks."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a state dict became.

    Attributes:
      contents: what it holds.
      model: with its weights; a `Swin` where it is an encoder alone.
      config: of the run that the model is of; None of an encoder.
      arguments: of the command line, for that configuration or for a model with that encoder.
    """

    contents: Contents
    model: nnx.Module
    config: Config | None
    arguments: tuple[str, ...]


def convert(
    tensors: Mapping[str, np.ndarray], name: str | None, overrides: Mapping[str, str]
) -> Converted:
    """Returns the model that a state dict holds.

    Args:
      tensors: torch names to arrays.
      name: of its configuration; None recognises the published ones by their tasks.
      overrides: {key: text} of the configuration.

    Raises:
      ValueError: it is no model or encoder that is known, or does not fit its configuration.
    """
    contents = contents_of(tensors)
    if contents.official is None:
        check_not_whole(tensors)
        if name or overrides:
            raise ValueError(f"--config does not go with an encoder alone: it holds {contents}.")
        encoder = _encoder(tensors, contents)
        chosen = size_name(contents.size)
        chosen = (f"--config.model.encoder={chosen}",) if chosen else ()
        return Converted(contents, encoder, None, chosen)
    name = name or recognise(contents)
    overrides = _sizes(contents, overrides, configuration.load(name, overrides)) | overrides
    config = configuration.load(name, overrides)
    model = abstract_model(config.model, config.tasks.selected)
    nnx.update(model, from_torch(tensors, model))
    chosen = (f"--config={name}", *(f"--config.{key}={text}" for key, text in overrides.items()))
    return Converted(contents, model, config, chosen)


def _sizes(contents: Contents, overrides: Mapping[str, str], config: Config) -> dict[str, str]:
    """Returns {key: text} of a model's sizes that shapes tell and a configuration lacks."""
    found: dict[str, object] = {}
    if "model.encoder" not in overrides:
        found["model.encoder"] = encoder_name(contents.size)
    if contents.blocks:
        found["model.expansion"], found["model.state_size"] = contents.blocks
    own = config.flat()
    return {key: str(value) for key, value in found.items() if value != own[key]}


def recognise(contents: Contents) -> str:
    """Returns the configuration of a published model, by its tasks.

    Raises:
      ValueError: none has those.
    """
    plus = MODELS["mtmamba_plus"] is contents.official.model
    for recipe in RECIPES:
        if {task.name for task in TASK_SETS[recipe]} == set(contents.tasks):
            return f"{recipe}:plus" if plus else recipe
    raise ValueError(
        f"The state dict holds {contents}: no published configuration has those tasks. Say which "
        "one it is: --config=NAME, with --config.tasks.names=... or --config.tasks.classes=..."
    )


def encoder_name(size: SwinSize | None) -> str:
    """Returns the key of `SWIN_SIZES` of a size.

    Raises:
      ValueError: there is none.
    """
    for name, known in SWIN_SIZES.items():
        if known == size:
            return name
    raise ValueError(
        f"The state dict's encoder is of no size in models.swin.SWIN_SIZES: {size}. Add a row "
        "there, and name it: --config=NAME --config.model.encoder=ROW."
    )


def _encoder(tensors: Mapping[str, np.ndarray], contents: Contents) -> Swin:
    if contents.size is None:
        raise ValueError(f"The state dict holds {contents}: its shapes are no Swin's.")
    encoder = nnx.eval_shape(lambda: Swin(contents.size, rngs=nnx.Rngs(0)))
    nnx.update(encoder, encoder_from_torch(tensors, encoder))
    for i, width in enumerate(encoder.widths):
        if contents.layout.norms[i] is None:  # a classifier's, which starts as the identity
            encoder.norms[i] = LayerNorm(width, dtype=encoder.norms[i].dtype)
    return encoder


def describe_weights(model: nnx.Module) -> str:
    """Returns how many numbers weights are, their means, and a hash that tells them from others.

    The same weights give the same text, whichever file they came from.
    """
    digest, count, total, magnitude = hashlib.sha256(), 0, 0.0, 0.0
    for keys, variable in sorted(nnx.to_flat_state(nnx.state(model, WEIGHTS)), key=_path):
        array = np.asarray(variable[...])
        digest.update(_path((keys, variable)).encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        count += array.size
        total += array.sum(dtype=np.float64)
        magnitude += np.abs(array).sum(dtype=np.float64)
    return (
        f"{count:,} numbers, mean {total / count:.9g}, mean magnitude {magnitude / count:.9g}, "
        f"SHA-256 {digest.hexdigest()[:16]}"
    )


def _path(entry: tuple) -> str:
    return "/".join(map(str, entry[0]))


def check_target(place: str) -> None:
    """Checks that weights can be written to a place, before they are read.

    Raises:
      ValueError: it is a run already, or of a kind that is not written to.
    """
    if place.endswith(TORCH):
        raise ValueError(
            f"--to={place}: convert writes a work directory or a file that ends in {SAFETENSORS}. "
            "PyTorch's own files are written by export --format=torch."
        )
    if place.endswith(SAFETENSORS):
        if is_remote(place):
            raise ValueError(f"--to={place}: a file is written to a disk. Give its path there.")
        return
    if not is_remote(place) and pathlib.Path(place).is_file():
        raise ValueError(
            f"--to={place} is a file. Give a folder, or the name of a file that ends in "
            f"{SAFETENSORS}."
        )
    directory = RunDirectory(place, "--to")
    if directory.has_checkpoints() or directory.config_file.exists():
        raise ValueError(f"--to={place} holds a run already. Give another folder.")


def write_run(converted: Converted, workdir: epath.PathLike, source: str) -> None:
    """Writes a model as the best checkpoint of a run that was not trained here.

    `eval`, `predict`, `export` and `config.init` read it; of an encoder, `config.init.encoder`.

    Args:
      converted: what to write.
      workdir: of `check_target`.
      source: where it is from.

    Raises:
      OSError: it cannot be written.
    """
    directory = RunDirectory(workdir)
    weights = jax.tree.map(np.asarray, split_model(converted.model)[1])
    weights = {"encoder": weights} if converted.config is None else weights
    config = {} if converted.config is None else converted.config.flat()
    details = {"delta_m": float("nan"), "scores": None, "source": source}
    with contextlib.closing(CheckpointWriter(directory, config=config)) as checkpoints:
        checkpoints.save_best({"parameters": weights}, 0, details)
    if converted.config is not None:
        directory.write_config(converted.config)


def write_file(converted: Converted, path: epath.PathLike, source: str) -> None:
    """Writes weights as a safetensors file, with the names of the official code.

    Raises:
      OSError: it cannot be written.
    """
    about = {"source": source, "holds": str(converted.contents)}
    write_safetensors(path, to_torch(converted.model), about)
