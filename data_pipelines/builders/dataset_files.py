"""The base class of a published dataset's files: what an example is read from, and how."""

import abc
import pathlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Shaped, UInt8

from mtmamba_jax.data_pipelines.batch import Example
from mtmamba_jax.data_pipelines.read_files import COPY_AGAIN, read_list, read_published_photo
from mtmamba_jax.tasks.table import Task


class DatasetFiles(abc.ABC):
    """One split of a dataset as its authors publish it, indexed by example.

    `files[i]` reads and checks raw example i (see `batch.py`). A `DataError` names the file, what
    is wrong with it and the remedy.

    Attributes:
      TASKS: Tasks that the dataset has labels for.
      COUNTS: Published number of examples of each split, "train" and "val".
      FOLDERS: Names of the folders that hold the dataset; they need not lie side by side.
      SUBFOLDERS: Each of `FOLDERS` has at least one of these subfolders; () if any content will do.
      SPLIT_PATH: Path that a split must have: its list of IDs or the folder of its images. Starts
        with one of `FOLDERS`, as all paths here; {split} is the name of the split.
      PATHS: Paths of an example's files by name, "image" among them; {id} is the example's ID.
      ARCHIVES: Glob patterns of the published archives' names.
      folders: Path of each of `FOLDERS`.
      split: Name of the split, "train" or "val".
      ids: IDs of the examples, in the published order.
    """

    TASKS: ClassVar[tuple[Task, ...]]
    COUNTS: ClassVar[Mapping[str, int]]
    FOLDERS: ClassVar[tuple[str, ...]]
    SUBFOLDERS: ClassVar[tuple[str, ...]] = ()
    SPLIT_PATH: ClassVar[str]
    PATHS: ClassVar[Mapping[str, str]]
    ARCHIVES: ClassVar[tuple[str, ...]]

    def __init__(self, folders: Mapping[str, pathlib.Path], split: str):
        self.folders, self.split = dict(folders), split
        self.ids = self._read_ids()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        paths = self.paths(index)
        image = self._read_image(paths["image"])
        height, width, _ = image.shape
        labels = self._read_labels(paths, (height, width))
        return {"image": image, "id": self.ids[index], **labels}

    @classmethod
    def split_path(cls, folders: Mapping[str, pathlib.Path], split: str) -> pathlib.Path:
        """Returns `SPLIT_PATH` for a split, given the path of each of `FOLDERS`."""
        return _resolve(folders, cls.SPLIT_PATH.format(split=split))

    def paths(self, index: int) -> dict[str, pathlib.Path]:
        """Returns the paths of an example's files by name, as `PATHS`."""
        names = {"split": self.split, "id": self.ids[index]}
        return {
            key: _resolve(self.folders, path.format(**names)) for key, path in self.PATHS.items()
        }

    def how_to_exclude(self) -> str:
        """Returns what a user must do to exclude some examples."""
        return f"take their names out of {self.split_path(self.folders, self.split)}"

    def _read_image(self, path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
        return read_published_photo(path)

    def _read_ids(self) -> tuple[str, ...]:
        return read_list(self.split_path(self.folders, self.split), COPY_AGAIN)

    @abc.abstractmethod
    def _read_labels(
        self, paths: Mapping[str, pathlib.Path], size: tuple[int, int]
    ) -> dict[str, Shaped[np.ndarray, "h w _"]]: ...


def _resolve(folders: Mapping[str, pathlib.Path], path: str) -> pathlib.Path:
    folder, rest = path.split("/", 1)
    return folders[folder] / rest
