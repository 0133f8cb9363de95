"""The input pipeline: source -> transforms -> batches, one share for each process (grain).

A source is any picklable object with `len(source)` and `source[i]`, a raw example of `batch.py`.

Global batch s is a function of (seed, s) alone: the number of processes, workers and threads does
not change it, so the step is the whole data position and a resumed run asks for `start_step`. It
is the concatenation over processes of their shares, in order. Batches run on across the ends of
epochs: an epoch is `len(source)` examples, each once, in an order of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import weakref
from collections.abc import Iterator, Sequence
from typing import Protocol

import grain
import numpy as np
from absl import flags

from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.transforms import (
    AugmentSettings,
    Example,
    NormaliseAndPad,
    Transform,
    eval_transforms,
    train_transforms,
)
from mtmamba_jax.data_pipelines.workers import Notes, noting
from mtmamba_jax.tasks import Task

# Batches kept ready in this process, or by each worker. A batch of 8 NYUDv2 examples is 74 MB.
_BUFFERED_BATCHES = 2
_THREADS = 2
# A batch that something holds when the program ends (jax may use its memory) is freed by Python's
# resource tracker, which would warn of it. It takes its filters from here.
_QUIET_TRACKER = "ignore:resource_tracker:UserWarning"
# "Without end", in examples. Grain's own endless repeat overflows for batches of one example.
_ENDLESS = 2**40
# Of an example. Grain would wait for ever for a worker that called sys.exit().
_ERRORS = (Exception, SystemExit)


class Source(Protocol):
    """Raw examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class ExampleError(ValueError):
    """An example could not be read or transformed; the message names it and the cause."""


class Batches(Iterator[dict[str, np.ndarray]]):
    """The batches of one process; `close()` ends its threads and workers and frees what they hold.

    Also closed when dropped and, at the latest, before Python exits: grain's own cleaning up comes
    too late then, and leaks shared memory.
    """

    def __init__(self, iterator: grain.DatasetIterator, notes: Notes | None = None):
        # The only reference, so that closing frees the iterator even while this object lives on.
        self._open = [iterator]
        self._notes = notes
        weakref.finalize(self, _close, self._open, notes)

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch.

        Raises:
          ExampleError: an example could not be read or transformed.
          WorkerError: a worker died.
        """
        if not self._open:
            raise StopIteration
        try:
            batch = next(self._open[0])
        except RuntimeError as error:
            death = self._notes and self._notes.death(error)
            if death:
                raise death from error
            raise
        # Workers hand over a subclass of ndarray; this is the same memory without it.
        return {key: np.asarray(value) for key, value in batch.items()}

    def close(self) -> None:
        """Ends threads and workers; there are no batches after it."""
        _close(self._open, self._notes)


def _close(iterators: list[grain.DatasetIterator], notes: Notes | None) -> None:
    while iterators:
        iterators.pop().close()
    if notes:
        notes.close()


def train_batches(
    source: Source,
    tasks: Sequence[Task],
    *,
    crop_size: tuple[int, int],
    batch_size: int,
    seed: int,
    augment: AugmentSettings,
    label_scale: int = 1,
    start_step: int = 0,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Yields this process's share of the training batches, without end.

    Args:
      source: the raw examples.
      tasks: whose labels go into the batch.
      crop_size: height and width of the images.
      batch_size: examples in a global batch, over all processes.
      seed: of the order and of the augmentation, in 0..2**32 - 1.
      augment: the augmentation.
      label_scale: labels are this many times as high and wide as the images.
      start_step: number of the first batch.
      num_workers: processes that prepare batches; 0: two threads of this process. Workers are
        spawned, so a script that uses them needs the `if __name__ == "__main__":` guard.
      process_index: which share, of `process_count`.
      process_count: processes that train together.

    Returns:
      An iterator of batches as in `batch.py`.

    Raises:
      ValueError: an argument that cannot work. While iterating, `ExampleError` names the example
        that could not be read, `WorkerError` the one that a worker died over.
    """
    share = _share(batch_size, process_index, process_count)
    if not 0 <= seed < 2**32 or start_step < 0:
        raise ValueError(
            f"wanted 0 <= seed < 2**32 and start_step >= 0, got seed {seed}, "
            f"start_step {start_step}."
        )
    # Grain orders epoch e by (seed + e), so neighbouring seeds would share their orders: the two
    # seeds it gets are hashes of ours.
    order_seed, augment_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    *transforms, last = train_transforms(tasks, crop_size, augment, label_scale)
    dataset = (
        grain.MapDataset.source(_Examples(source, tuple(tasks), _length(source)))
        .shuffle(seed=order_seed)
        .repeat(_ENDLESS // len(source))
        # Its rng is a function of the seed and the position in the endless sequence.
        .random_map(_Apply(tuple(transforms)), seed=augment_seed)
        .batch(share, batch_fn=_Stack(last))
    )
    first = start_step * process_count + process_index
    return _iterate(dataset[first::process_count], num_workers)


def eval_batches(
    source: Source,
    tasks: Sequence[Task],
    *,
    size: tuple[int, int],
    batch_size: int,
    label_scale: int = 1,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Yields this process's share of the evaluation batches: each example once, in order.

    The last global batch is filled up with repeats of the last example, whose `mask` is False.
    All processes get the same number of batches. Arguments, result and errors are those of
    `train_batches`; `size` is the height and width that every image is padded to.
    """
    share = _share(batch_size, process_index, process_count)
    batches = -(-_length(source) // batch_size)
    *transforms, last = eval_transforms(tasks, size, label_scale)
    dataset = (
        grain.MapDataset.source(_Examples(source, tuple(tasks), batches * batch_size))
        # Nothing random is drawn; random_map because transforms take an rng.
        .random_map(_Apply(tuple(transforms)), seed=0)
        .batch(share, batch_fn=_Stack(last))
    )
    return _iterate(dataset[process_index::process_count], min(num_workers, batches))


def _length(source: Source) -> int:
    if len(source) == 0:
        raise ValueError("The data source is empty: wanted at least one example.")
    return len(source)


def _share(batch_size: int, process_index: int, process_count: int) -> int:
    """Returns the examples of a global batch that each process gets."""
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"wanted 0 <= process_index < process_count, got {process_index} and {process_count}."
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} is not a positive multiple of process_count "
            f"{process_count}; each process takes an equal share of a batch."
        )
    return batch_size // process_count


def _iterate(dataset: grain.MapDataset, num_workers: int) -> Batches:
    if num_workers < 0:
        raise ValueError(f"num_workers: wanted 0 or more, got {num_workers}.")
    if num_workers == 0:
        threads = grain.ReadOptions(_THREADS, _BUFFERED_BATCHES)
        return Batches(iter(dataset.to_iter_dataset(threads)))
    # Grain asks absl for its own flags when it starts workers, and absl refuses to answer before
    # somebody has parsed the command line. Ours sets none: their defaults hold.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    if _QUIET_TRACKER not in sys.warnoptions:
        sys.warnoptions.append(_QUIET_TRACKER)
    options = grain.MultiprocessingOptions(num_workers, _BUFFERED_BATCHES)
    # A worker is a loop of its own that works ahead; threads in it would only add memory.
    own_loop = dataset.to_iter_dataset(grain.ReadOptions(0, 0))
    notes = Notes(num_workers)
    return Batches(iter(own_loop.mp_prefetch(options, notes.starter())), notes)


@dataclasses.dataclass(frozen=True)
class _Examples:
    """The source's examples, checked, with `mask`; past its end the last one, masked out."""

    source: Source
    tasks: tuple[Task, ...]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        real = min(int(index), len(self.source) - 1)
        try:
            with noting(f"read example {real}"):
                example = self.source[real]
                check_example(example, self.tasks)
        except _ERRORS as error:
            raise ExampleError(f"Example {real} could not be read: {_cause(error)}") from error
        return {**example, "mask": index == real}


@dataclasses.dataclass(frozen=True)
class _Apply:
    transforms: tuple[Transform, ...]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        with _naming(example["id"]):
            for transform in self.transforms:
                example = transform(example, rng)
        return example


@contextlib.contextmanager
def _naming(identity: str) -> Iterator[None]:
    try:
        with noting(f"transformed example {identity!r}"):
            yield
    except _ERRORS as error:
        raise ExampleError(
            f"Example {identity!r} could not be transformed: {_cause(error)}"
        ) from error


def _cause(error: BaseException) -> str:
    # A worker's error loses its __cause__ on the way here, so the message carries it.
    return f"{type(error).__name__}: {error}"


@dataclasses.dataclass(frozen=True)
class _Stack:
    """Makes a batch; the last transform writes each example to its place there."""

    last: NormaliseAndPad

    def __call__(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        arrays = self.last.empty(len(examples))
        for index, example in enumerate(examples):
            with _naming(example["id"]):
                self.last.write(example, {key: value[index] for key, value in arrays.items()})
        return {
            "images": arrays.pop("image"),
            **arrays,
            "id": np.array([example["id"] for example in examples]),
            "mask": np.array([example["mask"] for example in examples]),
        }
