"""What the TFDS builders share: published files -> ArrayRecord shards, in parallel, resumable.

Each shard is written beside the dataset's place, under a name that holds a hash of all that it is
made of, and renamed when it is whole; the last step moves all of them to their place. A run that
was stopped finds its shards and goes on; an error leaves nothing in place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

import tensorflow_datasets as tfds
import tqdm
from array_record.python import array_record_module
from tensorflow_datasets.core import dataset_builder, example_serializer
from tensorflow_datasets.core import splits as tfds_splits

from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.builders import archives, encoding
from mtmamba_jax.data_pipelines.builders.files import DataError, check_space
from mtmamba_jax.data_pipelines.builders.layout import Layout, locate
from mtmamba_jax.data_pipelines.parallel import in_order

EXAMPLES_PER_SHARD = 64
_MESSAGES = 20  # of bad examples that are shown


class DenseBuilder(dataset_builder.FileReaderBuilder, skip_registration=True):
    """A dataset for dense prediction: an image, its `id` and a label for each task.

    `builder.download_and_prepare(download_config=DownloadConfig(manual_dir=DIR))`, as with every
    TFDS builder, or the command `prepare`, which sets the options below. Needs no TensorFlow.

    Args:
      source: the published archives, or what was in them; None takes TFDS's `manual_dir`.
      allow_partial: take a subset of the published examples, with a warning.
      num_workers: processes that read and convert; 0 converts in this one.
      **kwargs: of TFDS, such as `data_dir`.

    Raises:
      DataError: on preparing; names the files that are missing or wrong.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the published archives, or what is in them, there."
    LAYOUT: ClassVar[type[Layout]]
    # ArrayRecord's compression of a record. Pictures are compressed already and depth hardly can
    # be: NYUDv2's records would be a quarter smaller and take twice as long to read.
    COMPRESSION: ClassVar = "uncompressed"
    HOMEPAGE: ClassVar[str]
    LICENSE: ClassVar[str]

    def __init__(
        self,
        *,
        source: str | os.PathLike | None = None,
        allow_partial: bool = False,
        num_workers: int = 0,
        **kwargs,
    ):
        super().__init__(file_format="array_record", **kwargs)
        self._source = source
        self._allow_partial, self._num_workers = allow_partial, num_workers

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=encoding.features(self.LAYOUT.TASKS),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
        )

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        place = pathlib.Path(self.data_dir)  # TFDS renames it when all is done
        staging = self.staging_folder()
        source = pathlib.Path(self._source or dl_manager.manual_dir).expanduser()
        with _locked(staging):
            for left in place.parent.glob(f"incomplete.*_{self.version}"):  # by a killed run
                if left != place:
                    shutil.rmtree(left)
            layouts = open_layouts(
                self.LAYOUT, self.name, source, staging, allow_partial=self._allow_partial
            )
            shards = [shard for layout in layouts for shard in _shards(layout, staging)]
            missing = [shard for shard in shards if not shard.path.exists()]
            needed = sum(shard.source_bytes() for shard in missing)
            check_space(needed * 11 // 10, staging, f"Writing the records of {self.name}")
            convert = functools.partial(_convert, self.LAYOUT.TASKS)
            with tqdm.tqdm(
                total=sum(len(shard.indices) for shard in shards),
                initial=sum(len(shard.indices) for shard in shards if shard not in missing),
                desc=f"Converting {self.name}",
                unit="example",
            ) as bar:
                options = f"group_size:1,{self.COMPRESSION}"  # one record: random access
                _write_all(missing, convert, options, self._num_workers, bar.update)
            self.info.set_splits(self._move(layouts, shards, place))
            shutil.rmtree(staging)

    def _log_download_bytes(self) -> None:
        """Nothing: TFDS would announce a download of unknown size."""

    def _log_download_done(self) -> None:
        """Nothing: TFDS would say that it was downloaded."""

    def staging_folder(self) -> pathlib.Path:
        """Returns where unfinished work is kept."""
        root = pathlib.Path(self.data_dir_root).expanduser()
        return root / self.name / f".{self.version}.unfinished"

    def _move(self, layouts, shards, place: pathlib.Path) -> tfds_splits.SplitDict:
        """Moves finished shards to their place and returns what TFDS notes of them."""
        infos = []
        for layout in layouts:
            own = [shard for shard in shards if shard.layout is layout]
            template = self._get_filename_template(split_name=layout.split)
            num_bytes = sum(shard.path.stat().st_size for shard in own)
            for i, shard in enumerate(own):
                target = template.sharded_filepath(shard_index=i, num_shards=len(own))
                os.replace(shard.path, place / target.name)
            infos.append(
                tfds_splits.SplitInfo(
                    name=layout.split,
                    shard_lengths=[len(shard.indices) for shard in own],
                    num_bytes=num_bytes,
                    filename_template=template,
                )
            )
        return tfds_splits.SplitDict(infos)


def open_layouts(
    kind: type[Layout],
    name: str,
    source: pathlib.Path,
    staging: pathlib.Path,
    *,
    allow_partial: bool,
) -> list[Layout]:
    """Opens every split of a dataset's published files, and checks their numbers.

    Args:
      kind: the layout.
      name: of the dataset, for messages.
      source: an archive, or a folder with archives or with what was in them.
      staging: where archives are extracted.
      allow_partial: fewer examples, or one split alone, are a warning.

    Raises:
      DataError: something is missing; names it.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist. Give the folder or archive of {name}.")
    roots = [source]
    if source.is_file():
        roots = [archives.extract(source, staging / "extracted")]
    else:
        roots += [
            archives.extract(archive, staging / "extracted")
            for archive in archives.find(source, kind.ARCHIVES)
        ]
    folders = locate(roots, kind.PARTS, name)
    layouts = []
    for split, wanted in kind.COUNTS.items():
        path = kind.split_file(folders, split)
        found = len(kind(folders, split)) if path.exists() else 0
        if found != wanted:
            message = f"{path} names {found} examples, the published {split} split has {wanted}."
            if not allow_partial:
                raise DataError(
                    f"{message} Extract the archive again, or take what is there "
                    "with --allow_partial."
                )
            tqdm.tqdm.write(f"warning: {message}")
        if found:
            layouts.append(kind(folders, split))
    if not layouts:
        raise DataError(f"{source} holds no example of {name}.")
    return layouts


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Some examples of a split, and the file that they are written to."""

    layout: Layout
    indices: range
    path: pathlib.Path

    def source_bytes(self) -> int:
        """Returns the size of the files that it is made of; its records are as large."""
        return sum(
            path.stat().st_size
            for index in self.indices
            for path in self.layout.files(index).values()
            if path.exists()
        )


def _shards(layout: Layout, staging: pathlib.Path) -> Iterator[_Shard]:
    for start in range(0, len(layout), EXAMPLES_PER_SHARD):
        indices = range(start, min(start + EXAMPLES_PER_SHARD, len(layout)))
        digest = _digest(layout, indices)
        yield _Shard(layout, indices, staging / f"{layout.split}-{start:06d}-{digest}")


def _digest(layout: Layout, indices: Iterable[int]) -> str:
    """Returns a hash of the examples' names and of their files' sizes and times."""
    digest = hashlib.sha256(str(DenseBuilder.VERSION).encode())
    for index in indices:
        for key, path in layout.files(index).items():
            try:
                status = path.stat()
            except OSError:
                seen = "missing"  # which converting it will tell
            else:
                seen = f"{status.st_size} {status.st_mtime_ns}"
            digest.update(f"{layout.ids[index]} {key} {seen}\n".encode())
    return digest.hexdigest()[:16]


def _write_all(
    shards: Sequence[_Shard],
    convert: Callable[[Layout, int], bytes | DataError],
    options: str,
    num_workers: int,
    advance: Callable[[], object],
) -> None:
    """Writes every shard without a bad example.

    Raises:
      DataError: all that is wrong with the examples of the others.
    """
    work = [(shard.layout, index) for shard in shards for index in shard.indices]
    errors = []
    with contextlib.closing(in_order(convert, work, num_workers)) as results:
        for shard in shards:
            records = []
            for _ in shard.indices:
                result = next(results)
                (errors if isinstance(result, DataError) else records).append(result)
                advance()
            if len(records) == len(shard.indices):
                _write(records, shard.path, options)
    if errors:
        shown = "\n  ".join(map(str, errors[:_MESSAGES]))
        more = f"\n  and {len(errors) - _MESSAGES} more" if len(errors) > _MESSAGES else ""
        raise DataError(
            f"{len(errors)} of {len(work)} examples are wrong:\n  {shown}{more}\n"
            "Mend them and run the same command again: what is done is kept."
        )


def _convert(tasks, layout: Layout, index: int) -> bytes | DataError:
    """Returns an example's record, or what is wrong with its files."""
    try:
        example = layout[index]
        check_example(example, tasks)
        image = layout.files(index)["image"].read_bytes()
        return serialize(tasks, encoding.encode(example, image, tasks))
    except DataError as error:
        return error


def serialize(tasks, record) -> bytes:
    """Returns the bytes of `encoding.encode`'s record."""
    features, serializer = _serializer(tasks)
    message = serializer.get_tf_example(features.encode_example(record))
    return message.SerializeToString(deterministic=True)  # else keys are in any order


@functools.cache
def _serializer(tasks):
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


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps a second process out of a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OSError(
                f"Another process is preparing this dataset in {folder.parent}. Wait for it."
            ) from None
        yield
