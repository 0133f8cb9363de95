"""What a dataset's published layout is: a source of raw examples with the files they come from."""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from mtmamba_jax.data_pipelines.builders.reading import read_photo
from mtmamba_jax.data_pipelines.transforms import Example
from mtmamba_jax.tasks import Task


class DatasetFiles(abc.ABC):
    """One split of a dataset as its authors publish it: raw examples (`batch.py`) by index.

    Reading checks: `DataError` names the file, what is wrong with it and the remedy.

    Attributes:
      TASKS: the labels that it has.
      COUNTS: published number of examples of each split, "train" and "val".
      FOLDERS: folders that hold it; some or all lie together.
      SUBFOLDERS: folders of which each part holds one or more; () for any.
      ARCHIVES: patterns of the published archives' names.
      folders: where each of `FOLDERS` is.
      split: "train" or "val".
      ids: of its examples, in the published order.
    """

    TASKS: ClassVar[tuple[Task, ...]]
    COUNTS: ClassVar[Mapping[str, int]]
    FOLDERS: ClassVar[tuple[str, ...]]
    SUBFOLDERS: ClassVar[tuple[str, ...]] = ()
    ARCHIVES: ClassVar[tuple[str, ...]]

    def __init__(self, folders: Mapping[str, pathlib.Path], split: str):
        self.folders, self.split = dict(folders), split
        self.ids = self._read_ids()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        files = self.paths(index)
        image = self._read_image(files["image"])
        return {
            "image": image,
            "id": self.ids[index],
            **self._read_labels(index, files, image.shape[:2]),
        }

    def leave_out(self) -> str:
        """Returns what to do to have a dataset without some examples."""
        return f"take their names out of {self.split_file(self.folders, self.split)}"

    def _read_image(self, path: pathlib.Path) -> np.ndarray:
        return read_photo(path)

    @classmethod
    @abc.abstractmethod
    def split_file(cls, folders: Mapping[str, pathlib.Path], split: str) -> pathlib.Path:
        """Returns what must exist for a split: its list, or the folder of its images."""

    @abc.abstractmethod
    def _read_ids(self) -> tuple[str, ...]: ...

    @abc.abstractmethod
    def paths(self, index: int) -> dict[str, pathlib.Path]:
        """Returns the files that an example is read from; "image" among them."""

    @abc.abstractmethod
    def _read_labels(
        self, index: int, files: Mapping[str, pathlib.Path], size: tuple[int, int]
    ) -> dict[str, np.ndarray]: ...
