"""Converts PyTorch weights to a run or a weight file, for the command `convert`."""

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
from mtmamba_jax.convert import Contents, encoder_from_torch, from_torch, identify, to_torch
from mtmamba_jax.convert.state_dicts import check_no_prefix, size_name
from mtmamba_jax.convert.weight_files import SAFETENSORS, TORCH, has_ending, write_safetensors
from mtmamba_jax.data_pipelines.datasets import DATASETS
from mtmamba_jax.files.paths import is_remote
from mtmamba_jax.models.mtmamba import MODELS, abstract_model
from mtmamba_jax.models.norm import LayerNorm
from mtmamba_jax.models.swin import SWIN_SIZES, Swin, SwinSize
from mtmamba_jax.models.weights import WEIGHTS, split_model
from mtmamba_jax.tasks.table import TASK_SETS


@dataclasses.dataclass(frozen=True)
class Converted:
    """A model converted from a state dict.

    Attributes:
      contents: Contents of the state dict.
      model: The model with its weights; a `Swin` if the state dict is an encoder alone.
      config: The model's configuration, or None for an encoder alone.
      arguments: Command-line arguments that select this model or this encoder.
    """

    contents: Contents
    model: nnx.Module
    config: Config | None
    arguments: tuple[str, ...]


def convert(
    tensors: Mapping[str, np.ndarray],
    name: str | None,
    overrides: Mapping[str, str],
    patch_merging: str | None = None,
) -> Converted:
    """Converts the model in a state dict.

    Args:
      tensors: Arrays by tensor name.
      name: Name of the model's configuration. None finds that of a published model by its tasks.
      overrides: Values of configuration keys as text, by key.
      patch_merging: Order of an encoder alone; see `encoder_from_torch`.

    Raises:
      ValueError: If the model or the encoder is unknown, or does not fit the configuration.
    """
    contents = identify(tensors)
    if contents.official is None:
        check_no_prefix(tensors)
        if name or overrides:
            raise ValueError(
                f"--config does not go with an encoder alone. The file holds {contents}."
            )
        encoder = _convert_encoder(tensors, contents, patch_merging)
        known = contents.size and size_name(contents.size)
        return Converted(
            contents, encoder, None, (f"--config.model.encoder={known}",) if known else ()
        )
    if patch_merging:
        raise ValueError(
            f"--patch_merging goes with an encoder alone. The file holds {contents}, whose order "
            "is known: omit the flag."
        )
    name = name or find_recipe(contents)
    own = configuration.load(name, overrides).flat()
    sizes: dict[str, object] = {}
    if "model.encoder" not in overrides:
        sizes["model.encoder"] = find_encoder_name(_known_size(contents))
    if contents.blocks:
        sizes["model.expansion"], sizes["model.state_size"] = contents.blocks
    found = {key: str(value) for key, value in sizes.items() if value != own[key]}
    overrides = found | dict(overrides)
    config = configuration.load(name, overrides)
    model = abstract_model(config.model, config.tasks.selected)
    nnx.update(model, from_torch(tensors, model))
    chosen = (f"--config={name}", *(f"--config.{key}={text}" for key, text in overrides.items()))
    return Converted(contents, model, config, chosen)


def find_recipe(contents: Contents) -> str:
    """Returns the name of the configuration of a published model, found by the model's tasks.

    Raises:
      ValueError: If no published model has these tasks.
    """
    plus = contents.official is not None and MODELS["mtmamba_plus"] is contents.official.model
    for recipe in DATASETS:  # each has a configuration of its name
        if {task.name for task in TASK_SETS[recipe]} == set(contents.tasks):
            return f"{recipe}:plus" if plus else recipe
    raise ValueError(
        f"The state dict holds {contents}, and no published configuration has those tasks. Give "
        "one: --config=NAME, with --config.tasks.names=... or --config.tasks.classes=..."
    )


def find_encoder_name(size: SwinSize) -> str:
    """Returns the key of `SWIN_SIZES` of a size, or raises ValueError if there is none."""
    for name, known in SWIN_SIZES.items():
        if known == size:
            return name
    raise ValueError(
        f"The size of the encoder in the state dict is not in models.swin.SWIN_SIZES: {size}. Add "
        "a row there, and give its name: --config=NAME --config.model.encoder=ROW."
    )


def _known_size(contents: Contents) -> SwinSize:
    if contents.size is None:
        raise ValueError(f"The state dict holds {contents}; its shapes are not those of a Swin.")
    return contents.size


def _convert_encoder(
    tensors: Mapping[str, np.ndarray], contents: Contents, patch_merging: str | None
) -> Swin:
    size, naming = _known_size(contents), contents.naming
    assert naming is not None  # known where the size is
    encoder = nnx.eval_shape(lambda: Swin(size, rngs=nnx.Rngs(0)))
    nnx.update(encoder, encoder_from_torch(tensors, encoder, patch_merging))
    for i, width in enumerate(encoder.widths):
        if naming.norms[i] is None:  # a classifier does not have this norm; it is the identity
            encoder.norms[i] = LayerNorm(width, dtype=encoder.norms[i].dtype)
    return encoder


def describe_weights(model: nnx.Module) -> str:
    """Returns the number of weights, their mean and mean magnitude, and a hash, as text.

    The same weights give the same text, whatever file they are from.
    """
    digest, count, total, magnitude = hashlib.sha256(), 0, 0.0, 0.0
    weights = {"/".join(map(str, k)): v for k, v in nnx.to_flat_state(nnx.state(model, WEIGHTS))}
    for path, variable in sorted(weights.items()):
        array = np.asarray(variable[...])
        digest.update(path.encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        count += array.size
        total += array.sum(dtype=np.float64)
        magnitude += np.abs(array).sum(dtype=np.float64)
    return (
        f"{count:,} numbers, mean {total / count:.9g}, mean magnitude {magnitude / count:.9g}, "
        f"SHA-256 {digest.hexdigest()[:16]}"
    )


def check_target(place: str) -> None:
    """Checks that weights can be written to a place, before they are read.

    Raises:
      ValueError: If the place is a run already, or has an ending that is not supported.
    """
    if has_ending(place, *TORCH):
        raise ValueError(
            f"--to={place}: convert writes a work directory or a file that ends in {SAFETENSORS}. "
            "PyTorch files are written by export --format=torch."
        )
    if has_ending(place, SAFETENSORS):
        if is_remote(place):
            raise ValueError(f"--to={place}: a file can only be written to a local disk.")
        return
    if not is_remote(place) and pathlib.Path(place).is_file():
        raise ValueError(
            f"--to={place} is a file. Give a folder, or a file name that ends in {SAFETENSORS}."
        )
    directory = RunDirectory(place, "--to")
    if directory.has_checkpoints() or directory.config_file.exists():
        raise ValueError(f"--to={place} holds a run already. Give another folder.")


def write_run(converted: Converted, workdir: epath.PathLike, source: str) -> None:
    """Writes a model as the best checkpoint of a run that was not trained here.

    `eval`, `predict`, `export` and `config.init` read it; an encoder alone is only read by
    `config.init.encoder`. `source` is the name of the file that the weights are from.

    Raises:
      OSError: If the run cannot be written.
    """
    directory, config = RunDirectory(workdir), converted.config
    weights = jax.tree.map(np.asarray, split_model(converted.model)[1])
    weights = {"encoder": weights} if config is None else weights
    details = {"delta_m": float("nan"), "scores": None, "source": source}
    writer = CheckpointWriter(directory, config={} if config is None else config.flat())
    with contextlib.closing(writer) as checkpoints:
        checkpoints.save_best({"parameters": weights}, 0, details)
    if config is not None:
        directory.write_config(config)


def write_file(converted: Converted, path: epath.PathLike, source: str) -> None:
    """Writes weights as a safetensors file with the names of the official code.

    Raises:
      OSError: If the file cannot be written.
    """
    about = {"source": source, "holds": str(converted.contents)}
    write_safetensors(path, to_torch(converted.model), about)
