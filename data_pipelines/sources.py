"""Opens the data source that a configuration names, and keeps its examples in memory if asked.

To add a source, write a picklable class with `len(source)` and `source[i]` (a raw example of
`batch.py`), and a function in `SOURCES` that creates it from `config.data`.
"""

import dataclasses
import threading
from collections.abc import Callable, Sequence

from mtmamba_jax.data_pipelines.batch import Example
from mtmamba_jax.data_pipelines.datasets import DATASETS
from mtmamba_jax.data_pipelines.folder.source import Folder
from mtmamba_jax.data_pipelines.pipeline import Source
from mtmamba_jax.data_pipelines.records import Records
from mtmamba_jax.data_pipelines.synthetic.source import SyntheticScenes
from mtmamba_jax.messages import GIB, check_name
from mtmamba_jax.tasks.table import Task

SPLITS = {"train": "train", "test": "val"}
"""The published name of each split."""


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which examples a run reads, and how; the fields of `config.data`.

    Attributes:
      name: Key of `SOURCES`.
      dir: Folder of the data. For "folder" the one that `folder/source.py` describes; for prepared
        datasets TFDS's data_dir, a folder or gs://..., None for TFDS's default; unused otherwise.
      size: Height and width, in pixels, of training crops and of padded evaluation images.
      label_scale: Label pixels per image pixel along each axis.
      train_examples: Size of the synthetic training set.
      test_examples: Size of the synthetic test set.
      num_workers: Worker processes that prepare batches; 0 uses threads of this process.
      cache_gib: Memory for examples kept after their first reading, in GiB, for the training and
        the test set each, in each worker process.
    """

    name: str = "synthetic"
    dir: str | None = None
    size: tuple[int, int] = (448, 576)
    label_scale: int = 1
    train_examples: int = 795
    test_examples: int = 654
    num_workers: int = 0
    cache_gib: float = 0.0


def _synthetic(data: DataSettings, tasks: Sequence[Task], split: str) -> Source:
    height, width = data.size
    return SyntheticScenes(
        tasks,
        size=(height * data.label_scale, width * data.label_scale),
        split=split,
        num_examples=data.train_examples if split == "train" else data.test_examples,
    )


def _records(data: DataSettings, tasks: Sequence[Task], split: str) -> Source:
    return Records(data.name, data.dir, SPLITS[split], tasks)


def _folder(data: DataSettings, tasks: Sequence[Task], split: str) -> Source:
    source = Folder(data.dir, SPLITS[split], tasks)
    print(source.summary(), flush=True)
    return source


SOURCES: dict[str, Callable[[DataSettings, Sequence[Task], str], Source]] = {
    "synthetic": _synthetic,
    "folder": _folder,
    **dict.fromkeys(DATASETS, _records),
}
"""Creates a source from (config.data, tasks, "train" or "test"), for each `config.data.name`."""


class CachedSource:
    """A source that keeps raw examples in memory after their first use.

    For sets that fit in memory and are slow to read. Once full, it keeps what it has: in shuffled
    epochs no example is worth more than another. Thread-safe; the returned arrays are shared and
    therefore read-only. It is pickled without its contents: each worker process fills its own
    cache, so together they hold up to `num_workers * max_bytes`.

    Raises:
      ValueError: If `max_bytes`, the bound on the size of the kept arrays, is negative.
    """

    def __init__(self, source: Source, max_bytes: int):
        if max_bytes < 0:
            raise ValueError(f"max_bytes: wanted 0 or more, got {max_bytes}.")
        self._source, self._max_bytes, self._bytes = source, max_bytes, 0
        self._examples: dict[int, Example] = {}
        self._lock = threading.Lock()

    def __reduce__(self):
        return CachedSource, (self._source, self._max_bytes)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        if index in self._examples:
            return dict(self._examples[index])
        # Read outside the lock: two threads may read the same example, but never wait in line.
        example = self._source[index]
        arrays = [value for value in example.values() if hasattr(value, "nbytes")]
        needed = sum(array.nbytes for array in arrays)
        with self._lock:
            if index not in self._examples and self._bytes + needed <= self._max_bytes:
                for array in arrays:
                    array.flags.writeable = False
                self._examples[index] = example
                self._bytes += needed
        return dict(example)


def open_source(data: DataSettings, tasks: Sequence[Task], split: str) -> Source:
    """Opens the data source of a configuration, cached in memory if `cache_gib` is not 0.

    The splits "train" and "test" have no example in common.

    Raises:
      ValueError: If the name is unknown (the message lists the valid ones), or the data is missing.
    """
    check_name("data source", data.name, SOURCES)
    check_name("split", split, SPLITS)
    source = SOURCES[data.name](data, tasks, split)
    cache = int(data.cache_gib * GIB)
    return CachedSource(source, cache) if cache else source
