"""What the TFDS builders share: published files -> records, in parallel, resumable.

Shards are written beside the dataset's place; TFDS then puts links to all of them there at once.
Only after that they are discarded, so a run that was stopped, whenever that was, finds what is done
and goes on; an error leaves nothing in place.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from typing import ClassVar

import tensorflow_datasets as tfds
import tqdm
from tensorflow_datasets.core import dataset_builder
from tensorflow_datasets.core import splits as tfds_splits

from mtmamba_jax.data_pipelines.builders import encoding
from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.builders.locate import open_splits
from mtmamba_jax.data_pipelines.builders.shards import split, write_all
from mtmamba_jax.files.locks import locked
from mtmamba_jax.files.paths import check_free_space


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
    FILES: ClassVar[type[DatasetFiles]]
    # ArrayRecord's compression of a record. Pictures are compressed already and depth hardly can
    # be: NYUDv2's records would be a quarter smaller and take twice as long to read.
    COMPRESSION: ClassVar = "uncompressed"
    # Photos as PNGs that are not compressed: larger, and read in a tenth of the time.
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
            features=encoding.features(self.FILES.TASKS),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
        )

    def download_and_prepare(self, **kwargs) -> None:
        """Prepares the dataset, unless it is there; see TFDS for its arguments."""
        # Holds the lock till TFDS has put the result in place and what is unfinished is discarded.
        with contextlib.ExitStack() as self._held:
            super().download_and_prepare(**kwargs)

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        place = pathlib.Path(self.data_dir)  # TFDS renames it when all is done
        staging = self.staging_folder()
        source = pathlib.Path(self._source or dl_manager.manual_dir).expanduser()
        lock = locked(staging / "lock", "prepares this dataset", wait=False)
        self._held.enter_context(lock)
        shutil.rmtree(self._discarded_folder(), ignore_errors=True)
        for left in place.parent.glob(f"incomplete.*_{self.version}"):  # by a killed run
            if left != place:
                shutil.rmtree(left)
        layouts = open_splits(
            self.FILES, self.name, source, staging, allow_partial=self._allow_partial
        )
        shards = [
            shard for layout in layouts for shard in split(layout, staging, str(self.version))
        ]
        missing = [shard for shard in shards if not shard.path.exists()]
        needed = sum(shard.source_bytes() for shard in missing)
        check_free_space(needed * 3 // 2, staging, f"Writing the records of {self.name}")
        with tqdm.tqdm(
            total=sum(len(shard.indices) for shard in shards),
            initial=sum(len(shard.indices) for shard in shards if shard not in missing),
            desc=f"Converting {self.name}",
            unit="example",
        ) as bar:
            write_all(
                missing,
                self.FILES.TASKS,
                compression=self.COMPRESSION,
                unpack_photos=self.UNPACK_PHOTOS,
                num_workers=self._num_workers,
                advance=bar.update,
            )
        self.info.set_splits(self._link(layouts, shards, place))

    def _post_download_and_prepare_hook(self) -> None:
        """Called by TFDS when the result is in its place."""
        self.discard_staging()

    def _log_download_bytes(self) -> None:
        """Nothing: TFDS would announce a download of unknown size."""

    def _log_download_done(self) -> None:
        """Nothing: TFDS would say that it was downloaded."""

    def staging_folder(self) -> pathlib.Path:
        """Returns where unfinished work is kept."""
        root = pathlib.Path(self.data_dir_root).expanduser()
        return root / self.name / f".{self.version}.unfinished"

    def discard_staging(self) -> None:
        """Deletes unfinished work; for a dataset that is prepared.

        It is renamed first: were this killed half-way, the next run would take the rest of an
        extracted archive for all of it. What cannot be deleted stays.
        """
        discarded = self._discarded_folder()
        shutil.rmtree(discarded, ignore_errors=True)
        with contextlib.suppress(OSError):  # there is none, for instance
            os.rename(self.staging_folder(), discarded)
        shutil.rmtree(discarded, ignore_errors=True)

    def _discarded_folder(self) -> pathlib.Path:
        return self.staging_folder().with_name(f".{self.version}.discarded")

    def _link(self, layouts, shards, place: pathlib.Path) -> tfds_splits.SplitDict:
        """Links finished shards to their place and returns what TFDS notes of them."""
        infos = []
        for layout in layouts:
            own = [shard for shard in shards if shard.layout is layout]
            template = self._get_filename_template(split_name=layout.split)
            num_bytes = sum(shard.path.stat().st_size for shard in own)
            for i, shard in enumerate(own):
                target = template.sharded_filepath(shard_index=i, num_shards=len(own))
                try:
                    os.link(shard.path, place / target.name)
                except OSError:  # a file system without links
                    shutil.copy2(shard.path, place / target.name)
            infos.append(
                tfds_splits.SplitInfo(
                    name=layout.split,
                    shard_lengths=[len(shard.indices) for shard in own],
                    num_bytes=num_bytes,
                    filename_template=template,
                )
            )
        return tfds_splits.SplitDict(infos)
