"""Gives every configuration key its type: one dataclass for each section.

`configs/common.py` declares every key with its default, valid values and meaning. Models, data
sources and transforms define the dataclass of their own section.
"""

import dataclasses
import functools
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Self

from ml_collections import ConfigDict

from mtmamba_jax.config.ranges import check_ranges
from mtmamba_jax.configs import common
from mtmamba_jax.data_pipelines.folder.source import find_folder, task_folders
from mtmamba_jax.data_pipelines.sources import DataSettings
from mtmamba_jax.data_pipelines.transforms import AugmentSettings
from mtmamba_jax.messages import nearest
from mtmamba_jax.models.mtmamba import ModelSettings
from mtmamba_jax.tasks.table import CUSTOM, Task, select

FREE_KEYS = (
    "on_nonfinite", "mesh.data", "mesh.fsdp", "data.dir", "data.num_workers", "data.cache_gib",
    "model.scan_implementation", "model.remat", "train.log_every", "train.checkpoint_every",
    "train.keep_checkpoints", "eval.batch_size", "eval.panels",
)  # fmt: skip
"""Keys that may change when a run resumes, because they do not change what is learned."""


@dataclasses.dataclass(frozen=True)
class InitSettings:
    """Weights to start from; see `checkpoints.warm_start`."""

    run: str | None
    encoder: str | None


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The mesh of devices; see `devices.sharding.create_mesh`."""

    data: int
    fsdp: int


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """The tasks of a run; see `tasks.table.select`.

    Attributes:
      baselines: {task name: score that delta_m compares with}; empty compares with the best
        constant predictions.
    """

    set: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    baselines: Mapping[str, float]

    @functools.cached_property
    def selected(self) -> tuple[Task, ...]:
        """The tasks, in the order of their set."""
        return select(self.set, self.names, self.classes)


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """How the tasks' losses are added up; see `losses.multitask_loss`."""

    scheme: str
    reduction: str
    weights: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning-rate schedule; see `training.optimizer`."""

    learning_rate: float
    warmup_steps: int
    power: float
    weight_decay: float
    beta_1: float
    beta_2: float
    epsilon: float


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The training loop; periods are in steps."""

    steps: int
    batch_size: int
    microbatches: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    keep_checkpoints: int


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """Evaluation on the test set."""

    batch_size: int
    panels: int


@dataclasses.dataclass(frozen=True)
class Config:
    """A valid configuration, one attribute for each section of `configs/common.py`.

    Raises:
      ValueError: If a value is out of range, a name is unknown, or keys contradict each other.
    """

    seed: int
    on_nonfinite: str
    init: InitSettings
    mesh: MeshSettings
    tasks: TaskSettings
    model: ModelSettings
    data: DataSettings
    augment: AugmentSettings
    loss: LossSettings
    optimizer: OptimizerSettings
    train: TrainSettings
    eval: EvalSettings

    def __post_init__(self):
        _check(self)

    def flat(self) -> dict[str, Any]:
        """Returns {dotted key: value} for JSON; `from_flat` is the inverse."""
        return flatten(common.get_config()) | flatten(dataclasses.asdict(self))

    def replace(self, **sections: Mapping[str, Any]) -> Self:
        """Returns a copy with other values: `config.replace(model={"dtype": "bfloat16"})`."""
        new = {k: dataclasses.replace(getattr(self, k), **v) for k, v in sections.items()}
        return dataclasses.replace(self, **new)


def from_flat(values: Mapping[str, object], origin: str) -> Config:
    """Returns the inverse of `Config.flat`; missing keys have their defaults.

    Args:
      values: {dotted key: value}.
      origin: Where the values come from, for error messages.

    Raises:
      ValueError: If a key is unknown or a value has the wrong type or range.
    """
    config = common.get_config()
    valid = flatten(config)
    for key, value in values.items():
        if key not in valid:
            raise ValueError(f"{origin} has the unknown key {key!r}.{nearest(key, valid)}")
        *sections, last = key.split(".")
        parent: Any = config
        for name in sections:
            parent = parent[name]
        try:
            parent[last] = tuple(value) if isinstance(value, list) else value
        except TypeError as error:
            raise ValueError(
                f"{origin} has a value of the wrong type at {key!r}: {error}"
            ) from error
    found: dict[str, Any] = config.to_dict()
    baselines = found["tasks"]["baselines"]
    found["tasks"]["baselines"] = {k: v for k, v in baselines.items() if v is not None}
    for name, section in typing.get_type_hints(Config).items():
        if isinstance(found[name], dict):
            try:
                found[name] = section(**found[name])
            except (TypeError, ValueError) as error:
                raise ValueError(f"Config keys '{name}.*': {error}") from error
    return Config(**found)


def flatten(values: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns {dotted key: value}, with tuples as lists, as JSON reads them back."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, ConfigDict | Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in flatten(value).items()}
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(saved: Config, wanted: Config) -> list[str]:
    """Returns "key: saved -> wanted" for every changed key that must not change on resuming."""
    a, b = saved.flat(), wanted.flat()
    changed = [key for key in sorted(a) if key not in FREE_KEYS and a[key] != b[key]]
    return [f"{key}: {a[key]} -> {b[key]}" for key in changed]


def _check(config: Config) -> None:
    check_ranges(config.flat())
    train = config.train
    if train.batch_size % train.microbatches:
        raise ValueError(
            f"train.batch_size={train.batch_size} does not split into "
            f"train.microbatches={train.microbatches} equal parts."
        )
    if train.microbatches > 1 and config.loss.reduction != "image":
        raise ValueError(
            f"loss.reduction={config.loss.reduction!r} averages over the whole batch, so it cannot "
            "be combined with train.microbatches > 1. Use loss.reduction='image'."
        )
    if config.data.name == "folder" and not config.tasks.names:
        raise ValueError(_unnamed_tasks(config.data.dir))
    tasks = [task.name for task in config.tasks.selected]
    if not any(config.loss.weights[name] for name in tasks):
        raise ValueError("loss.weights of all tasks of the run are 0: nothing would be learned.")
    _check_baselines(config.tasks.baselines, tasks)


def _check_baselines(baselines: Mapping[str, float], tasks: Sequence[str]) -> None:
    for name in baselines:
        if name not in tasks:
            raise ValueError(
                f"tasks.baselines.{name} is given, but the run has no task {name!r}."
                f"{nearest(name, tasks)} Valid: {', '.join(tasks)}."
            )
    missing = [name for name in tasks if name not in baselines]
    if baselines and missing:
        raise ValueError(
            f"tasks.baselines has no value for {', '.join(missing)}. Give a baseline for every "
            "task of the run, or for none."
        )


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
            f"{folder} has no folder of labels. Each task's labels go into a folder with its name: "
            f"{', '.join(t.name for t in CUSTOM)}."
        )
    return (
        f"Config key 'tasks.names' is not set. {folder} has labels for {', '.join(found)}: choose "
        f"all or some of them, --config.tasks.names={','.join(found)}."
    )
