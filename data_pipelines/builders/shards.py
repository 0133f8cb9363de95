"""Writes records in shards, each completely or not at all, in parallel.

A shard's file name contains a hash of everything that its records depend on. A run that resumes
therefore finds the finished shards, and writes those whose source files have changed again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue] - a compiled module
)
from tensorflow_datasets.core import example_serializer

from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.builders import encoding
from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.parallel import in_order
from mtmamba_jax.data_pipelines.read_files import COPY_AGAIN, DataError
from mtmamba_jax.messages import bulleted, first_line
from mtmamba_jax.tasks.table import Task

EXAMPLES_PER_SHARD = 64


@dataclasses.dataclass(frozen=True)
class Shard:
    """The examples `indices` of a split, and the file that their records are written to."""

    files: DatasetFiles
    indices: range
    path: pathlib.Path

    def source_bytes(self) -> int:
        """Returns the total size of the files that the examples are read from."""
        return sum(
            path.stat().st_size
            for index in self.indices
            for path in self.files.paths(index).values()
            if path.exists()
        )


def split_into_shards(files: DatasetFiles, folder: pathlib.Path, version: str) -> list[Shard]:
    """Divides a split into shards below `folder`, named differently for each dataset version."""
    shards = []
    for start in range(0, len(files), EXAMPLES_PER_SHARD):
        indices = range(start, min(start + EXAMPLES_PER_SHARD, len(files)))
        digest = _digest(files, indices, version)
        shards.append(Shard(files, indices, folder / f"{files.split}-{start:06d}-{digest}"))
    return shards


def _digest(files: DatasetFiles, indices: Iterable[int], version: str) -> str:
    """Returns a hash of the examples' IDs and of their files' sizes and modification times."""
    digest = hashlib.sha256(version.encode())
    for index in indices:
        for key, path in files.paths(index).items():
            try:
                status = path.stat()
            except OSError:
                state = "missing"  # the conversion will report it
            else:
                state = f"{status.st_size} {status.st_mtime_ns}"
            digest.update(f"{files.ids[index]} {key} {state}\n".encode())
    return digest.hexdigest()[:16]


def write_shards(
    shards: Sequence[Shard],
    tasks: Sequence[Task],
    *,
    compression: str,
    unpack_photos: bool,
    num_workers: int,
    advance: Callable[[], object],
) -> None:
    """Writes every shard whose examples are all valid.

    Args:
      compression: Compression of a record, in ArrayRecord's notation.
      unpack_photos: Whether to store photos as uncompressed PNGs.
      num_workers: Number of worker processes; 0 converts in this process.
      advance: Function called after each example.

    Raises:
      DataError: If examples are invalid; the message lists what is wrong with each.
      OSError: If a shard cannot be written, for instance because the disk is full.
    """
    convert = functools.partial(_convert, tuple(tasks), unpack_photos)
    options = f"group_size:1,{compression}"  # groups are read as a whole: 1 allows random access
    work = [(shard.files, index) for shard in shards for index in shard.indices]
    errors, remedies = [], []
    with contextlib.closing(in_order(convert, work, num_workers)) as results:
        for shard in shards:
            records = []
            for _ in shard.indices:
                result = next(results)
                (errors if isinstance(result, DataError) else records).append(result)
                advance()
            if len(records) == len(shard.indices):
                _write(records, shard.path, options)
            else:
                remedies.append(shard.files.how_to_exclude())
    if errors:
        problems = bulleted([str(error) for error in errors])
        raise DataError(
            f"{len(errors)} of {len(work)} examples are wrong:{problems}\n"
            "Correct them and run the same command again: finished shards are kept in "
            f"{shards[0].path.parent}. Or {' and '.join(dict.fromkeys(remedies))}, and prepare the "
            "rest with --allow_partial."
        )


def _convert(
    tasks: tuple[Task, ...], unpack_photo: bool, files: DatasetFiles, index: int
) -> bytes | DataError:
    """Returns an example's serialised record, or what is wrong with its files."""
    image_path = files.paths(index)["image"]
    try:
        example = files[index]
        check_example(example, tasks)
        photo = image_path.read_bytes()
        record = encoding.encode(example, photo, tasks, unpack_photo=unpack_photo)
        features, serializer = _serializer(tasks)
        message = serializer.get_tf_example(features.encode_example(record))
        return message.SerializeToString(deterministic=True)  # otherwise keys come in any order
    except DataError as error:
        return error
    except MemoryError:
        raise
    except Exception as error:  # from a library, for a file that passed our checks
        return DataError(
            f"{image_path} and its labels cannot be converted ({first_line(error)}). {COPY_AGAIN}"
        )


@functools.cache
def _serializer(tasks: tuple[Task, ...]):
    features = encoding.create_features(tasks)
    specs: Any = features.get_serialized_info()  # TFDS annotates it more narrowly than it is used
    return features, example_serializer.ExampleSerializer(specs)


def _write(records: Sequence[bytes], path: pathlib.Path, options: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        writer = array_record_module.ArrayRecordWriter(os.fspath(partial), options)
        for record in records:
            writer.write(record)
        writer.close()
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except RuntimeError as error:  # from the writer
        raise OSError(
            f"Writing records failed ({error}). If the disk is full, free some space or give "
            "another --data_dir; then run the same command again: finished shards are kept."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
