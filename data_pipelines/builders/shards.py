"""Writing records: in shards, each whole or not at all, in parallel.

A shard's name holds a hash of all that it is made of, so that a run that was stopped finds those
that are done, and makes those anew whose files have changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.builders import encoding
from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.builders.reading import AGAIN, DataError
from mtmamba_jax.data_pipelines.parallel import in_order
from mtmamba_jax.tasks import Task

EXAMPLES_PER_SHARD = 64
_MESSAGES = 20  # of bad examples that are shown


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some examples of a split, and the file that they are written to."""

    layout: DatasetFiles
    indices: range
    path: pathlib.Path

    def source_bytes(self) -> int:
        """Returns the size of the files that it is made of."""
        return sum(
            path.stat().st_size
            for index in self.indices
            for path in self.layout.paths(index).values()
            if path.exists()
        )


def split(layout: DatasetFiles, folder: pathlib.Path, version: str) -> Iterator[Shard]:
    """Yields the shards of a dataset's split, to be written in a folder.

    Args:
      layout: the split.
      folder: for the files.
      version: of the dataset; another one has other files.
    """
    for start in range(0, len(layout), EXAMPLES_PER_SHARD):
        indices = range(start, min(start + EXAMPLES_PER_SHARD, len(layout)))
        digest = _digest(layout, indices, version)
        yield Shard(layout, indices, folder / f"{layout.split}-{start:06d}-{digest}")


def _digest(layout: DatasetFiles, indices: Iterable[int], version: str) -> str:
    """Returns a hash of the examples' names and of their files' sizes and times."""
    digest = hashlib.sha256(version.encode())
    for index in indices:
        for key, path in layout.paths(index).items():
            try:
                status = path.stat()
            except OSError:
                seen = "missing"  # which converting it will tell
            else:
                seen = f"{status.st_size} {status.st_mtime_ns}"
            digest.update(f"{layout.ids[index]} {key} {seen}\n".encode())
    return digest.hexdigest()[:16]


def write_all(
    shards: Sequence[Shard],
    tasks: Sequence[Task],
    *,
    compression: str,
    unpack_photos: bool,
    num_workers: int,
    advance: Callable[[], object],
) -> None:
    """Writes every shard without a bad example.

    Args:
      shards: those to write.
      tasks: whose labels are kept.
      compression: of a record, as ArrayRecord names it.
      unpack_photos: keep photos as PNGs that are not compressed.
      num_workers: processes that convert; 0 converts in this one.
      advance: called after each example.

    Raises:
      DataError: all that is wrong with the examples of the others.
      OSError: the disk is full, for instance.
    """
    convert = functools.partial(_convert, tuple(tasks), unpack_photos)
    options = f"group_size:1,{compression}"  # a group is read whole: one record is random access
    work = [(shard.layout, index) for shard in shards for index in shard.indices]
    errors, layouts = [], []
    with contextlib.closing(in_order(convert, work, num_workers)) as results:
        for shard in shards:
            records = []
            for _ in shard.indices:
                result = next(results)
                (errors if isinstance(result, DataError) else records).append(result)
                advance()
            if len(records) == len(shard.indices):
                _write(records, shard.path, options)
            elif shard.layout not in layouts:
                layouts.append(shard.layout)
    if errors:
        shown = "\n  ".join(map(str, errors[:_MESSAGES]))
        more = f"\n  and {len(errors) - _MESSAGES} more" if len(errors) > _MESSAGES else ""
        leave_out = " and ".join(dict.fromkeys(layout.leave_out() for layout in layouts))
        raise DataError(
            f"{len(errors)} of {len(work)} examples are wrong:\n  {shown}{more}\n"
            "Mend them and run the same command again: what is done is kept in "
            f"{shards[0].path.parent}. Or {leave_out}, and take the rest with --allow_partial."
        )


def _convert(
    tasks: tuple[Task, ...], unpack_photo: bool, layout: DatasetFiles, index: int
) -> bytes | DataError:
    """Returns an example's record, or what is wrong with its files."""
    files = layout.paths(index)
    try:
        example = layout[index]
        check_example(example, tasks)
        photo = files["image"].read_bytes()
        record = encoding.encode(example, photo, tasks, unpack_photo=unpack_photo)
        features, serializer = _serializer(tasks)
        message = serializer.get_tf_example(features.encode_example(record))
        return message.SerializeToString(deterministic=True)  # else keys are in any order
    except DataError as error:
        return error
    except MemoryError:
        raise
    except Exception as error:  # of a library, for files that no check has refused
        return DataError(
            f"{files['image']} and its labels cannot be converted ({type(error).__name__}: "
            f"{error}). {AGAIN}"
        )


@functools.cache
def _serializer(tasks: tuple[Task, ...]):
    features = encoding.features(tasks)
    return features, example_serializer.ExampleSerializer(features.get_serialized_info())


def _write(records: Sequence[bytes], path: pathlib.Path, options: str) -> None:
    """Writes a shard, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        writer = array_record_module.ArrayRecordWriter(os.fspath(partial), options)
        for record in records:
            writer.write(record)
        writer.close()
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except RuntimeError as error:  # of the writer
        raise OSError(
            f"Writing records failed ({error}). If the disk is full, free some or give another "
            "--data_dir; then run the same command again: what is done is kept."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
