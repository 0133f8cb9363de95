"""The input pipeline: source -> transforms -> batches, one share per process (grain).

A source is any picklable object with `len(source)` and `source[i]`, a raw example of `batch.py`.

Global batch s is a function of (seed, s) alone: the number of processes, workers and threads does
not change it, so the step is the whole data position and a resumed run passes `start_step`. It is
the concatenation of the processes' shares, in order. Batches continue across the ends of epochs:
an epoch is `len(source)` examples, each once, in its own order.
"""

import contextlib
import dataclasses
import sys
import weakref
from collections.abc import Iterator, Sequence
from typing import Protocol

import grain
import numpy as np
from absl import flags

from mtmamba_jax.data_pipelines import transforms as transforms_lib
from mtmamba_jax.data_pipelines.batch import Example, check_example
from mtmamba_jax.data_pipelines.read_files import DataError
from mtmamba_jax.data_pipelines.workers import set_up_worker, worker_death
from mtmamba_jax.tasks.table import Task

# Batches prefetched by this process, or by each worker. A batch of 8 NYUDv2 examples is 74 MB.
_BUFFERED_BATCHES = 2
_THREADS = 2
# A batch that is still referenced when the program ends (jax may use its memory) is freed by
# Python's resource tracker, which would warn about it. It takes its filters from here.
_QUIET_TRACKER = "ignore:resource_tracker:UserWarning"
# Number of examples in an endless run: grain's own endless repeat overflows for batches of one
# example.
_ENDLESS = 2**40
# Caught from an example's code: grain would wait forever for a worker that called sys.exit().
_ERRORS = (Exception, SystemExit)


class Source(Protocol):
    """Raw examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class ExampleError(ValueError):
    """An example could not be read or transformed; the message names it and the cause."""


class Batches(Iterator[dict[str, np.ndarray]]):
    """An iterator over the batches of one process.

    `close()` ends its threads and workers and frees what they hold. It is also closed when it is
    garbage-collected and, at the latest, before Python exits: grain's own clean-up comes too late
    then, and leaks shared memory.
    """

    def __init__(self, iterator: grain.DatasetIterator):
        # The only reference, so that closing frees the iterator even while this object lives on.
        self._open = [iterator]
        weakref.finalize(self, _close, self._open)

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch.

        Raises:
          ExampleError: If an example could not be read or transformed.
          WorkerError: If a worker process died.
        """
        if not self._open:
            raise StopIteration
        try:
            batch = next(self._open[0])
        except RuntimeError as error:
            if death := worker_death(error):
                raise death from error
            raise
        # Workers return a subclass of ndarray; this is the same memory without it.
        return {key: np.asarray(value) for key, value in batch.items()}

    def close(self) -> None:
        """Ends threads and workers; afterwards there are no more batches."""
        _close(self._open)


def _close(iterators: list[grain.DatasetIterator]) -> None:
    while iterators:
        iterators.pop().close()


def train_batches(
    source: Source,
    tasks: Sequence[Task],
    *,
    crop_size: tuple[int, int],
    batch_size: int,
    seed: int,
    augment: transforms_lib.AugmentSettings,
    label_scale: int = 1,
    start_step: int = 0,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Returns an endless iterator over this process's share of the training batches (`batch.py`).

    Args:
      crop_size: Height and width of the images, in pixels.
      batch_size: Number of examples in a global batch, over all processes.
      seed: Seed of the order and the augmentation, in 0..2**32 - 1.
      label_scale: Label pixels per image pixel along each axis.
      start_step: Number of the first batch.
      num_workers: Number of worker processes that prepare batches; 0 uses two threads of this
        process. Workers are spawned, so a script that uses them needs the
        `if __name__ == "__main__":` guard.

    Raises:
      ValueError: If an argument is out of range, or the source is empty.
    """
    share = _share(batch_size, process_index, process_count)
    if not 0 <= seed < 2**32 or start_step < 0:
        raise ValueError(
            f"wanted 0 <= seed < 2**32 and start_step >= 0, got seed {seed}, "
            f"start_step {start_step}."
        )
    # Grain shuffles epoch e with seed + e, so neighbouring seeds would share their orders: its two
    # seeds are hashes of ours.
    order_seed, augment_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    *transforms, last = transforms_lib.train_transforms(tasks, crop_size, augment, label_scale)
    dataset = (
        grain.MapDataset.source(_Examples(source, tuple(tasks), _length(source)))
        .shuffle(seed=order_seed)
        .repeat(_ENDLESS // len(source))
        # The rng is a function of the seed and the position in the endless sequence.
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
    """Returns an iterator over this process's share of the evaluation batches.

    Each example occurs once, in order. The last global batch is filled up with repeats of the last
    example, whose `mask` is False, so all processes get the same number of batches. Arguments,
    result and errors are those of `train_batches`; `size` is the height and width that every image
    is padded to.
    """
    share = _share(batch_size, process_index, process_count)
    batches = -(-_length(source) // batch_size)
    *transforms, last = transforms_lib.eval_transforms(tasks, size, label_scale)
    dataset = (
        grain.MapDataset.source(_Examples(source, tuple(tasks), batches * batch_size))
        # random_map because transforms take an rng, though none of these draws from it.
        .random_map(_Apply(tuple(transforms)), seed=0)
        .batch(share, batch_fn=_Stack(last))
    )
    return _iterate(dataset[process_index::process_count], min(num_workers, batches))


def _length(source: Source) -> int:
    if len(source) == 0:
        raise ValueError("The data source is empty: wanted at least one example.")
    return len(source)


def _share(batch_size: int, process_index: int, process_count: int) -> int:
    """Returns how many examples of a global batch each process gets."""
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
    # Grain reads its own absl flags when it starts workers, and absl raises before the command line
    # was parsed. Ours sets none of them, so their defaults hold.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    if _QUIET_TRACKER not in sys.warnoptions:
        sys.warnoptions.append(_QUIET_TRACKER)
    options = grain.MultiprocessingOptions(num_workers, _BUFFERED_BATCHES)
    # A worker prefetches in its own loop; threads in it would only use more memory.
    per_worker = dataset.to_iter_dataset(grain.ReadOptions(0, 0))
    return Batches(iter(per_worker.mp_prefetch(options, set_up_worker)))


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Checked examples with `mask`; beyond the source's end the last one, masked out."""

    source: Source
    tasks: tuple[Task, ...]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        real = min(int(index), len(self.source) - 1)
        try:
            example = self.source[real]
            check_example(example, self.tasks)
        except _ERRORS as error:
            raise ExampleError(f"Example {real} could not be read: {_cause(error)}") from error
        return {**example, "mask": index == real}


@dataclasses.dataclass(frozen=True)
class _Apply:
    transforms: tuple[transforms_lib.Transform, ...]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        with _naming_example(example["id"]):
            for transform in self.transforms:
                example = transform(example, rng)
        return example


@contextlib.contextmanager
def _naming_example(identity: str) -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise ExampleError(
            f"Example {identity!r} could not be transformed: {_cause(error)}"
        ) from error


def _cause(error: BaseException) -> str:
    # An error loses its __cause__ on the way from a worker, so the message includes it.
    return str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"


@dataclasses.dataclass(frozen=True)
class _Stack:
    """Stacks examples; the last transform writes each one into its place in the batch."""

    last: transforms_lib.NormaliseAndPad

    def __call__(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        arrays = self.last.empty(len(examples))
        for index, example in enumerate(examples):
            with _naming_example(example["id"]):
                self.last.write(example, {key: value[index] for key, value in arrays.items()})
        return {
            "images": arrays.pop("image"),
            **arrays,
            "id": np.array([example["id"] for example in examples]),
            "mask": np.array([example["mask"] for example in examples]),
        }
