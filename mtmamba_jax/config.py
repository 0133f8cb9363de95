"""Reading a configuration: by name, with single keys overridden, saved beside a run, compared."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pathlib
import pkgutil
import types
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

import mtmamba_jax.configs
from mtmamba_jax.configs import common
from mtmamba_jax.data_pipelines.folder.source import find_folder, task_folders
from mtmamba_jax.data_pipelines.transforms import AugmentSettings
from mtmamba_jax.files.paths import write_atomically
from mtmamba_jax.kernels.ss2d import IMPLEMENTATIONS
from mtmamba_jax.losses import REDUCTIONS, SCHEMES
from mtmamba_jax.messages import check_name, nearest
from mtmamba_jax.models.layers import REMAT_POLICIES
from mtmamba_jax.models.mtmamba import DTYPES, MODELS
from mtmamba_jax.models.swin import SWIN_SIZES
from mtmamba_jax.tasks import CUSTOM, Task, select

FREE_KEYS = (
    "on_nonfinite",
    "mesh.data",
    "mesh.fsdp",
    "data.dir",
    "data.num_workers",
    "data.cache_gib",
    "model.scan_implementation",
    "model.remat",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "eval.batch_size",
    "eval.panels",
)
"""Keys that may change when a run is resumed: they do not change what is learned."""


AT_LEAST_ONE = (
    "mesh.fsdp",
    "data.label_scale",
    "data.train_examples",
    "data.test_examples",
    "model.expansion",
    "model.state_size",
    "train.steps",
    "train.batch_size",
    "train.microbatches",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "eval.batch_size",
)
"""Counts that must be positive."""

AT_LEAST_ZERO = ("seed", "data.num_workers", "optimizer.warmup_steps", "eval.panels")
"""Numbers that must not be negative."""

SHARES = ("model.encoder_drop_path_rate", "model.decoder_drop_path_rate")
"""Probabilities below 1."""

CHOICES = {
    "on_nonfinite": ("stop", "skip"),
    "loss.scheme": SCHEMES,
    "loss.reduction": tuple(REDUCTIONS),
    "model.name": MODELS,
    "model.encoder": SWIN_SIZES,
    "model.dtype": DTYPES,
    "model.remat": REMAT_POLICIES,
    "model.scan_implementation": (None, *IMPLEMENTATIONS),
}
"""Keys that name one of a few."""


def run_name(name: str) -> str:
    """Returns the name of a run of `load(name)`: "synthetic", "synthetic_pascal"."""
    name, _, variant = name.partition(":")
    stem = pathlib.PurePath(name).name.removesuffix(".py")
    return f"{stem}_{variant}" if variant else stem


def load(name: str) -> ConfigDict:
    """Returns the configuration `NAME` or `NAME:VARIANT`; `configs/NAME.py` is understood too.

    Raises:
      ValueError: an unknown name or variant; the message gives the valid ones.
    """
    name, _, variant = name.partition(":")
    module, valid = _module(name), variants(name)
    if variant not in valid:
        raise ValueError(
            f"Config {module.__name__.split('.')[-1]!r} has no variant {variant!r}."
            f"{nearest(variant, valid)} Valid: {', '.join(repr(v) for v in valid)}."
        )
    takes_variant = bool(inspect.signature(module.get_config).parameters)
    return module.get_config(variant) if takes_variant else module.get_config()


def variants(name: str) -> tuple[str, ...]:
    """Returns the variants of the configuration `NAME`; "" is the one of its plain name.

    Raises:
      ValueError: an unknown name; the message gives the valid ones.
    """
    return tuple(getattr(_module(name), "VARIANTS", ("",)))


def _module(name: str) -> types.ModuleType:
    name = pathlib.PurePath(name).name.removesuffix(".py")
    valid = [module.name for module in pkgutil.iter_modules(mtmamba_jax.configs.__path__)]
    check_name("config", name, valid)
    return importlib.import_module(f"mtmamba_jax.configs.{name}")


def flatten(config: ConfigDict) -> dict[str, object]:
    """Returns {dotted key: value}; tuples as lists, as JSON gives them back."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{k}": v for k, v in flatten(value).items()}
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def override(config: ConfigDict, values: Mapping[str, str]) -> None:
    """Sets dotted keys from text, in place: Python literals, or plain words.

    Raises:
      ValueError: an unknown key (the message gives the nearest) or a value of another type.
    """
    valid = [*flatten(config), "tasks.baselines"]
    for key, text in values.items():
        parent = config
        *path, last = key.split(".")
        open_mapping = key.startswith("tasks.baselines.") and len(path) == 2
        if key not in valid and not open_mapping:
            raise ValueError(
                f"Unknown config key {key!r}.{nearest(key, valid)} "
                "configs/common.py lists every key."
            )
        for part in path:
            parent = parent[part]
        current = None if open_mapping else parent[last]
        parent[last] = _parse(key, text, current)


def _parse(key: str, text: str, current: object) -> object:
    """Returns the value that `text` stands for, of the type of `current` (None: any)."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(current, tuple):
        if isinstance(value, str):
            value = tuple(part.strip() for part in value.split(",") if part.strip())
        value = tuple(value) if isinstance(value, list | tuple) else (value,)
        # An empty tuple gives no pattern; a full one does, element by element.
        fits = not current or len(value) == len(current)
        if fits and current:
            value = tuple(
                float(v) if isinstance(c, float) and isinstance(v, int) else v
                for v, c in zip(value, current, strict=True)
            )
            fits = [type(v) for v in value] == [type(c) for c in current]
    else:
        if isinstance(current, float) and isinstance(value, int):
            value = float(value)
        fits = current is None or type(value) is type(current)
    if not fits:
        kind = type(current).__name__
        article = "an" if kind == "int" else "a"
        raise ValueError(
            f"Config key {key!r} wants {article} {kind} such as {current!r}; got {text!r}."
        )
    return value


def tasks(config: ConfigDict) -> tuple[Task, ...]:
    """Returns the tasks of a run.

    Raises:
      ValueError: names or classes that cannot be, or no names where the data does not give them.
    """
    if config.data.name == "folder" and not config.tasks.names:
        raise ValueError(_unnamed_tasks(config.data.dir))
    return select(config.tasks.set, config.tasks.names, config.tasks.classes)


def _unnamed_tasks(folder: str | None) -> str:
    if folder is None:
        return (
            "Config keys 'data.dir' and 'tasks.names' are not set. Give the folder of your data "
            "and the tasks to learn, such as --config.data.dir=my_data "
            f"--config.tasks.names=semseg,depth. Valid: {', '.join(t.name for t in CUSTOM)}."
        )
    found = task_folders(find_folder(folder))
    if not found:
        return (
            f"{folder} has no folder of labels. Each task has one, with its name: "
            f"{', '.join(t.name for t in CUSTOM)}."
        )
    return (
        f"Config key 'tasks.names' is not set. {folder} has labels for {', '.join(found)}: take "
        f"these or some, --config.tasks.names={','.join(found)}."
    )


def check(config: ConfigDict, task_names: Sequence[str]) -> None:
    """Checks the values that a run needs from its start.

    Args:
      config: the configuration.
      task_names: of the run's tasks.

    Raises:
      ValueError: a number out of range, an unknown name, or baselines that do not fit the tasks.
    """
    flat = flatten(config)
    for key in AT_LEAST_ONE:
        if flat[key] < 1:
            raise ValueError(f"Config key {key!r} must be at least 1, got {flat[key]}.")
    for key in AT_LEAST_ZERO:
        if not 0 <= flat[key] < 2**31:
            raise ValueError(f"Config key {key!r} must be in 0 to 2**31 - 1, got {flat[key]}.")
    for key in SHARES:
        if not 0 <= flat[key] < 1:
            raise ValueError(f"Config key {key!r} must be in [0, 1), got {flat[key]}.")
    for key, valid in CHOICES.items():
        if flat[key] not in valid:
            check_name(f"value of config key {key!r},", flat[key], filter(None, valid))
    if config.mesh.data < 1 and config.mesh.data != -1:
        raise ValueError(
            "Config key 'mesh.data' must be at least 1, or -1 for as many as there are; got "
            f"{config.mesh.data}."
        )
    if config.train.batch_size % config.train.microbatches:
        raise ValueError(
            f"train.batch_size={config.train.batch_size} does not split into "
            f"train.microbatches={config.train.microbatches} equal parts."
        )
    if config.train.microbatches > 1 and config.loss.reduction != "image":
        raise ValueError(
            f"loss.reduction={config.loss.reduction!r} takes losses over the whole batch, so it "
            "cannot go with train.microbatches > 1. Use loss.reduction='image'."
        )
    try:
        AugmentSettings(**config.augment)  # which checks them
    except ValueError as error:
        raise ValueError(f"Config keys 'augment.*': {error}") from error
    if min(config.data.size) < 1:
        raise ValueError(f"Config key 'data.size' must be positive, got {config.data.size}.")
    for name, value in config.tasks.baselines.items():
        key = f"tasks.baselines.{name}"
        if name not in task_names:
            raise ValueError(
                f"{key} is of no task of this run.{nearest(name, task_names)} "
                f"Valid: {', '.join(task_names)}."
            )
        if not isinstance(value, int | float):
            raise ValueError(f"Config key {key!r} wants a number, got {value!r}.")
    missing = [name for name in task_names if name not in config.tasks.baselines]
    if config.tasks.baselines and missing:
        raise ValueError(
            f"tasks.baselines lacks {', '.join(missing)}. Give every task of the run a baseline, "
            "or none."
        )


def save(config: ConfigDict, path: pathlib.Path) -> None:
    """Writes the configuration as JSON, whole or not at all."""
    write_atomically(path, (json.dumps(flatten(config), indent=2) + "\n").encode())


def read(path: pathlib.Path) -> ConfigDict:
    """Reads what `save` wrote, on top of the defaults.

    Raises:
      ValueError: the file is no configuration of this version.
    """
    try:
        saved = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}).") from error
    if not isinstance(saved, dict):
        raise ValueError(f"{path} must hold a JSON object of keys, got {saved!r:.80}.")
    return parse(saved, str(path))


def parse(saved: Mapping[str, object], origin: str) -> ConfigDict:
    """Returns the configuration of `flatten`'s {dotted key: value}, on top of the defaults.

    Args:
      saved: the values.
      origin: where they are from, for messages.

    Raises:
      ValueError: they are no configuration of this version.
    """
    config = common.get_config()
    valid = flatten(config)
    for key, value in saved.items():
        if key not in valid and not key.startswith("tasks.baselines."):
            raise ValueError(
                f"{origin} has the key {key!r}, which this version does not know."
                f"{nearest(key, valid)}"
            )
        parent = config
        *path_parts, last = key.split(".")
        for part in path_parts:
            parent = parent[part]
        try:
            parent[last] = tuple(value) if isinstance(value, list) else value
        except TypeError as error:
            raise ValueError(f"{origin} has another type of value at {key!r}: {error}") from error
    return config


def differences(saved: ConfigDict, wanted: ConfigDict) -> list[str]:
    """Returns "key: saved -> wanted" for every key that may not change on resuming."""
    a, b = flatten(saved), flatten(wanted)
    return [
        f"{key}: {a.get(key)} -> {b.get(key)}"
        for key in sorted(a.keys() | b.keys())
        if key not in FREE_KEYS and a.get(key) != b.get(key)
    ]
