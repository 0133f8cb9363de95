"""The base class of the TFDS builders: converts published files to records, in parallel.

An interrupted conversion resumes. Shards are written to a staging folder beside the dataset's
folder. When all are complete they are linked into the dataset's folder, TFDS renames it to its
final name, and only then is the staging folder deleted. So a run that is killed at any point finds
its finished shards, and an error leaves nothing in the dataset's folder.
"""

import contextlib
import itertools
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import ClassVar

import tensorflow_datasets as tfds
import tqdm
from tensorflow_datasets.core import dataset_builder
from tensorflow_datasets.core import splits as tfds_splits

from mtmamba_jax.data_pipelines.builders import encoding
from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.builders.locate import open_splits
from mtmamba_jax.data_pipelines.builders.shards import Shard, split_into_shards, write_shards
from mtmamba_jax.files.locks import locked
from mtmamba_jax.files.paths import check_free_space


class DenseBuilder(dataset_builder.FileReaderBuilder, skip_registration=True):
    """A dataset for dense prediction: an image, its `id` and a label for each task.

    Prepare it with `builder.download_and_prepare(download_config=DownloadConfig(manual_dir=DIR))`,
    like any TFDS builder, or with the command `prepare`, which sets the options below. TensorFlow
    is not needed.

    Args:
      source: The published archives or a folder with their contents; None uses TFDS's
        `manual_dir`.
      allow_partial: Whether to accept a subset of the published examples, with a warning.
      num_workers: Number of worker processes that read and convert; 0 converts in this process.
      **kwargs: Arguments of the TFDS builder, such as `data_dir`.

    Raises:
      DataError: If files are missing or wrong, when the dataset is prepared; names them.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the published archives, or their contents, there."
    FILES: ClassVar[type[DatasetFiles]]
    # ArrayRecord's compression of a record. Images are compressed already and depth hardly can be:
    # NYUDv2's records would be a quarter smaller and take twice as long to read.
    COMPRESSION: ClassVar = "uncompressed"
    # Whether to store photos as uncompressed PNGs: larger, and read in a tenth of the time.
    UNPACK_PHOTOS: ClassVar = False
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
            features=encoding.create_features(self.FILES.TASKS),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
        )

    def download_and_prepare(self, **kwargs) -> None:
        """Prepares the dataset unless it is prepared already; see TFDS for the arguments."""
        # Keeps the lock until TFDS has renamed the folder and the staging folder is deleted.
        with contextlib.ExitStack() as self._held:
            super().download_and_prepare(**kwargs)

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        target = pathlib.Path(self.data_dir)  # TFDS renames it at the end
        staging = self.staging_folder()
        source = pathlib.Path(self._source or dl_manager.manual_dir).expanduser()
        self._held.enter_context(locked(staging / "lock", "prepares this dataset", wait=False))
        shutil.rmtree(self._discarded_folder(), ignore_errors=True)
        for leftover in target.parent.glob(f"incomplete.*_{self.version}"):  # of a killed run
            if leftover != target:
                shutil.rmtree(leftover)
        splits = open_splits(
            self.FILES, self.name, source, staging, allow_partial=self._allow_partial
        )
        shards_of = {
            files.split: split_into_shards(files, staging, str(self.version)) for files in splits
        }
        shards = [*itertools.chain.from_iterable(shards_of.values())]
        missing = [shard for shard in shards if not shard.path.exists()]
        needed = sum(shard.source_bytes() for shard in missing)
        what = f"Writing the records of {self.name}"
        check_free_space(needed * 3 // 2, staging, what, "give another --data_dir")
        with tqdm.tqdm(
            total=sum(len(shard.indices) for shard in shards),
            initial=sum(len(shard.indices) for shard in shards if shard not in missing),
            desc=f"Converting {self.name}",
            unit="example",
        ) as bar:
            write_shards(
                missing,
                self.FILES.TASKS,
                compression=self.COMPRESSION,
                unpack_photos=self.UNPACK_PHOTOS,
                num_workers=self._num_workers,
                advance=bar.update,
            )
        self.info.set_splits(self._link(shards_of, target))

    def _post_download_and_prepare_hook(self) -> None:
        """Deletes the staging folder: TFDS calls this after the final rename."""
        self.discard_staging()

    def _log_download_bytes(self) -> None:
        """Does nothing; TFDS would announce a download of unknown size."""

    def _log_download_done(self) -> None:
        """Does nothing; TFDS would report a finished download."""

    def staging_folder(self) -> pathlib.Path:
        """Returns the folder of unfinished work."""
        root = pathlib.Path(self.data_dir_root).expanduser()
        return root / self.name / f".{self.version}.unfinished"

    def discard_staging(self) -> None:
        """Deletes the staging folder of a prepared dataset; what cannot be deleted stays.

        It is renamed first: if this were killed half-way, the next run would mistake what is left
        of an extracted archive for all of it.
        """
        discarded = self._discarded_folder()
        shutil.rmtree(discarded, ignore_errors=True)
        with contextlib.suppress(OSError):  # for instance, there is none
            os.rename(self.staging_folder(), discarded)
        shutil.rmtree(discarded, ignore_errors=True)

    def _discarded_folder(self) -> pathlib.Path:
        return self.staging_folder().with_name(f".{self.version}.discarded")

    def _link(
        self, shards_of: Mapping[str, Sequence[Shard]], target: pathlib.Path
    ) -> tfds_splits.SplitDict:
        """Links each split's shards into the folder `target` and returns TFDS's description."""
        infos = []
        for split, shards in shards_of.items():
            template = self._get_filename_template(split_name=split)
            for i, shard in enumerate(shards):
                path = template.sharded_filepath(shard_index=i, num_shards=len(shards))
                link = target / path.name
                try:
                    os.link(shard.path, link)
                except OSError:  # the file system has no hard links
                    shutil.copy2(shard.path, link)
            infos.append(
                tfds_splits.SplitInfo(
                    name=split,
                    shard_lengths=[len(shard.indices) for shard in shards],
                    num_bytes=sum(shard.path.stat().st_size for shard in shards),
                    filename_template=template,
                )
            )
        return tfds_splits.SplitDict(infos)
