"""Prepared datasets: raw examples from the records that TFDS builders wrote.

Needs the extra "data" (tensorflow-datasets, array_record), not TensorFlow.
"""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Sequence

from mtmamba_jax.data_pipelines import remote_cache
from mtmamba_jax.data_pipelines.datasets import DATASETS, default_data_dir
from mtmamba_jax.data_pipelines.transforms import Example
from mtmamba_jax.files.paths import is_remote
from mtmamba_jax.messages import check_name
from mtmamba_jax.tasks import Task

_SHOWN = 3  # files in a message
_PREPARE = "python launch.py prepare --dataset={} --source=PUBLISHED_FILES"


def create_builder(name: str, data_dir: str | os.PathLike | None = None, **options):
    """Returns the TFDS builder of a dataset.

    Args:
      name: one of `DATASETS`.
      data_dir: that holds, or is to hold, datasets; None is TFDS's own.
      **options: of `builders.base.DenseBuilder`.

    Raises:
      ValueError: an unknown name.
      RuntimeError: the extra "data" is not installed.
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
    """A random-access source (for grain) of raw examples; see `batch` for the labels' values.

    Args:
      name: one of `DATASETS`.
      data_dir: as given to `prepare`; None is TFDS's own. One on remote storage (gs://...) is
        copied to this host first: see `mirror`.
      split: as published, "train" or "val".
      tasks: whose labels each example holds; an attribute too.

    Raises:
      ValueError: it is not prepared there, lacks files, or has no label for a task.
      OSError: it cannot be copied from remote storage.
    """

    def __init__(
        self,
        name: str,
        data_dir: str | os.PathLike | None,
        split: str,
        tasks: Sequence[Task],
    ):
        version = _builder_class(name).VERSION  # says what is missing where it is not installed
        if is_remote(data_dir or default_data_dir()):
            place = os.fspath(data_dir or default_data_dir())
            data_dir = remote_cache.fetch(place, name, str(version))
        # Workers, which get these, open the copy without a look at the remote place.
        self._arguments = (name, data_dir, split, tuple(tasks))
        builder = create_builder(name, data_dir)

        import tensorflow_datasets as tfds

        from mtmamba_jax.data_pipelines.builders import encoding

        for task in tasks:
            if task not in builder.FILES.TASKS:
                names = ", ".join(t.name for t in builder.FILES.TASKS)
                raise ValueError(
                    f"{name} has no label for task {task.name!r} with {task.channels} channels. "
                    f"It has {names}; take --config.tasks.set={name}."
                )
        if not builder.is_prepared():
            raise ValueError(_how_to_prepare(name, pathlib.Path(builder.data_dir)))
        if split not in builder.info.splits:
            raise ValueError(
                f"{name} in {builder.data_dir} was prepared without the split {split!r}: it holds "
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

    def __repr__(self) -> str:
        name, data_dir, split, tasks = self._arguments
        names = "+".join(task.name for task in tasks)
        return f"Records({name!r}, {data_dir!r}, {split!r}, {names})"


def _how_to_prepare(name: str, folder: pathlib.Path) -> str:
    """Returns what to do about a dataset that is not in `folder`, DATA_DIR/NAME/VERSION."""
    place = folder.parent.parent
    for above in place.parents[:2]:  # given was a folder that is inside of it
        if (above / name / folder.name).is_dir():
            return f"{name} is in {above}, not in {place}: --config.data.dir={above}."
    return (
        f"{name} is not prepared in {place}. Prepare it there ({_PREPARE.format(name)}), or give "
        "its place: --config.data.dir=DIR."
    )


def _check_files(name: str, split) -> None:
    """Checks that each file of a split (TFDS's `SplitInfo`) is there.

    Raises:
      ValueError: names those that are not.
    """
    paths = [pathlib.Path(path) for path in split.filepaths]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        more = ", ..." if len(missing) > _SHOWN else ""
        raise ValueError(
            f"{name} in {paths[0].parent} lacks {len(missing)} of the {len(paths)} files of its "
            f"split {split.name!r}: {', '.join(missing[:_SHOWN])}{more}. Copy the folder again "
            f"from where it is whole, or delete it and prepare it again ({_PREPARE.format(name)})."
        )
