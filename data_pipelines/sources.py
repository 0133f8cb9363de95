"""Where raw examples come from: the table of data sources, and a wrapper that keeps them in memory.

To add a source, write a class with `len(source)` and `source[i]` (a raw example of `batch.py`)
that pickles, and a function in `SOURCES` that makes it from `config.data`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from mtmamba_jax.data_pipelines.folder.source import Folder
from mtmamba_jax.data_pipelines.pipeline import Source
from mtmamba_jax.data_pipelines.records import DATASETS, Records
from mtmamba_jax.data_pipelines.synthetic.source import SyntheticScenes
from mtmamba_jax.data_pipelines.transforms import Example
from mtmamba_jax.messages import check_name
from mtmamba_jax.tasks import Task

SPLITS = {"train": "train", "test": "val"}
"""The published name of each split."""


def _synthetic(data: ConfigDict, tasks: Sequence[Task], split: str) -> Source:
    return SyntheticScenes(
        tasks,
        size=tuple(n * data.label_scale for n in data.size),
        split=split,
        num_examples=data.train_examples if split == "train" else data.test_examples,
        seed=0,  # the set is the same for every seed of a run
    )


def _records(data: ConfigDict, tasks: Sequence[Task], split: str) -> Source:
    return Records(data.name, data.dir, SPLITS[split], tasks)


def _folder(data: ConfigDict, tasks: Sequence[Task], split: str) -> Source:
    source = Folder(data.dir, SPLITS[split], tasks)
    print(source.summary(), flush=True)
    return source


SOURCES: dict[str, Callable[[ConfigDict, Sequence[Task], str], Source]] = {
    "synthetic": _synthetic,
    "folder": _folder,
    **dict.fromkeys(DATASETS, _records),
}
"""(config.data, tasks, "train" or "test") -> source, for each `config.data.name`."""


class CachedSource:
    """A source that keeps each raw example after its first use, up to `max_bytes` of arrays.

    For sets that fit in memory and are slow to read. Once full it keeps what it has: in shuffled
    epochs no example is worth more than another. Thread-safe; the arrays handed out are shared and
    therefore read-only. Pickled without its contents: every worker process fills a cache of its
    own, so `num_workers` workers hold up to that many times `max_bytes`.

    Raises:
      ValueError: `max_bytes` is negative.
    """

    def __init__(self, source: Source, max_bytes: int):
        if max_bytes < 0:
            raise ValueError(f"max_bytes: wanted 0 or more, got {max_bytes}.")
        self._source = source
        self._max_bytes = max_bytes
        self._examples: dict[int, Example] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self):
        return CachedSource, (self._source, self._max_bytes)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        if index in self._examples:
            return dict(self._examples[index])
        # Read outside the lock: two threads may read one example twice, but never wait in line.
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


def open_source(data: ConfigDict, tasks: Sequence[Task], split: str) -> Source:
    """Returns the source that `config.data` names, kept in memory as far as it says.

    Args:
      data: `config.data`.
      tasks: whose labels each example holds.
      split: "train" or "test"; the two have no example in common.

    Raises:
      ValueError: an unknown name (the message gives the valid ones), or data that is not there.
    """
    check_name("data source", data.name, SOURCES)
    check_name("split", split, SPLITS)
    source = SOURCES[data.name](data, tasks, split)
    cache = int(data.cache_gib * 2**30)
    return CachedSource(source, cache) if cache else source
