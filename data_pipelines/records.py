"""Reads prepared datasets: raw examples from the records that the TFDS builders wrote.

Needs the extra "data" (tensorflow-datasets, array_record), not TensorFlow.
"""

import importlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from mtmamba_jax.data_pipelines import remote_cache
from mtmamba_jax.data_pipelines.batch import Example
from mtmamba_jax.data_pipelines.datasets import DATASETS, default_data_dir, prepare_command
from mtmamba_jax.files.paths import is_remote
from mtmamba_jax.messages import check_name, shortened
from mtmamba_jax.tasks.table import Task


def create_builder(name: str, data_dir: str | os.PathLike | None = None, **options):
    """Returns the TFDS builder of one of `DATASETS`, a `builders.base.DenseBuilder`.

    Raises:
      ValueError: If the name is unknown.
      RuntimeError: If the extra "data" is not installed.
    """
    data_dir = os.path.expanduser(data_dir or default_data_dir())
    return _builder_class(name)(data_dir=data_dir, **options)


def _builder_class(name: str):
    check_name("dataset", name, DATASETS)
    module = f"mtmamba_jax.data_pipelines.builders.{name}.{name}_dataset_builder"
    try:
        return importlib.import_module(module).Builder
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f'Prepared datasets need the extra "data": pip install -e ".[data]" ({error}).'
        ) from error


class Records:
    """A random-access source of the raw examples (see `batch.py`) of a prepared dataset.

    Args:
      name: One of `DATASETS`.
      data_dir: The data_dir given to `prepare`; None uses TFDS's default. A dataset on remote
        storage (gs://...) is copied to this host first; see `remote_cache`.
      split: Published split, "train" or "val".
      tasks: Tasks whose labels each example holds.

    Raises:
      ValueError: If the dataset is not prepared there, is incomplete, or has no label for a task.
      OSError: If the dataset cannot be copied from remote storage.
    """

    def __init__(
        self, name: str, data_dir: str | os.PathLike | None, split: str, tasks: Sequence[Task]
    ):
        version = _builder_class(name).VERSION  # raises if the extra "data" is not installed
        place = os.fspath(data_dir or default_data_dir())
        if is_remote(place):
            data_dir = remote_cache.fetch(place, name, str(version))
        # Workers, which get these arguments, open the local copy without contacting the bucket.
        self._arguments = (name, data_dir, split, tuple(tasks))
        builder = create_builder(name, data_dir)

        import tensorflow_datasets as tfds

        from mtmamba_jax.data_pipelines.builders import encoding

        for task in tasks:
            if task not in builder.FILES.TASKS:
                names = ", ".join(t.name for t in builder.FILES.TASKS)
                raise ValueError(
                    f"{name} has no label for task {task.name!r} with {task.channels} channels. "
                    f"It has {names}; use --config.tasks.set={name}."
                )
        if not builder.is_prepared():
            raise ValueError(_how_to_prepare(name, pathlib.Path(builder.data_dir)))
        if split not in builder.info.splits:
            raise ValueError(
                f"{name} in {builder.data_dir} was prepared without the split {split!r}: it has "
                f"{', '.join(builder.info.splits)}."
            )
        _check_files(name, builder.info.splits[split])
        self._decode, self.tasks = encoding.decode, tuple(tasks)
        skip = {key: tfds.decode.SkipDecoding() for key in builder.info.features}
        self._records = builder.as_data_source(split, decoders=skip)

    def __reduce__(self):
        return Records, self._arguments

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return self._decode(self._records[index], self.tasks)


def _how_to_prepare(name: str, folder: pathlib.Path) -> str:
    """Returns what to do about a dataset that is not in `folder`, DATA_DIR/NAME/VERSION."""
    data_dir = folder.parent.parent
    for parent in data_dir.parents[:2]:  # the user gave a folder inside DATA_DIR
        if (parent / name / folder.name).is_dir():
            return f"{name} is in {parent}, not in {data_dir}: --config.data.dir={parent}."
    return (
        f"{name} is not prepared in {data_dir}. Prepare it there ({prepare_command(name)}), or "
        "give the folder that holds it: --config.data.dir=DIR."
    )


def _check_files(name: str, split: Any) -> None:
    """Raises ValueError if files of a split, TFDS's `SplitInfo`, are missing."""
    paths = [pathlib.Path(path) for path in split.filepaths]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise ValueError(
            f"{name} in {paths[0].parent} lacks {len(missing)} of the {len(paths)} files of its "
            f"split {split.name!r}: {shortened(missing, 3)}. Copy the folder again from a complete "
            f"one, or delete it and prepare it again ({prepare_command(name)})."
        )
