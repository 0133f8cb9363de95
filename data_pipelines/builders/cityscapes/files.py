"""Cityscapes as published: street scenes of 1024x2048 pixels.

leftImg8bit/{train,val}/CITY/ID_leftImg8bit.png    RGB
gtFine/{train,val}/CITY/ID_gtFine_labelIds.png     label IDs, of which 19 are trained
disparity/{train,val}/CITY/ID_disparity.png        16 bits; 0: not measured, else 256 d + 1
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.builders.reading import (
    AGAIN,
    DataError,
    read_grey,
    to_class_ids,
)
from mtmamba_jax.tasks import CITYSCAPES, IGNORE

# Label IDs of the 19 training classes, in their order; the 15 others are not trained
# (Cordts et al., CVPR 2016, and its label definitions).
TRAINED_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_SEMSEG = np.full(34, IGNORE, np.int32)
_SEMSEG[list(TRAINED_IDS)] = np.arange(len(TRAINED_IDS))
_MAX_DISPARITY = 80  # pixels; larger ones are not scored
_IMAGE_SUFFIX = "_leftImg8bit.png"


class Cityscapes(DatasetFiles):
    """Cityscapes, 2,975 training and 500 validation images; Cordts et al., CVPR 2016."""

    TASKS = CITYSCAPES
    COUNTS: ClassVar = {"train": 2975, "val": 500}
    FOLDERS = ("leftImg8bit", "gtFine", "disparity")
    SUBFOLDERS = ("train", "val")
    ARCHIVES = ("leftImg8bit_trainvaltest*", "gtFine_trainvaltest*", "disparity_trainvaltest*")

    @classmethod
    def split_file(cls, folders, split):
        """Returns the folder of the split's images."""
        return folders["leftImg8bit"] / split

    def _read_ids(self):
        folder = self.split_file(self.folders, self.split)
        paths = sorted(folder.glob(f"*/*{_IMAGE_SUFFIX}"))
        if not paths:
            raise DataError(f"{folder} holds no image CITY/*{_IMAGE_SUFFIX}. {AGAIN}")
        return tuple(
            path.relative_to(folder).as_posix().removesuffix(_IMAGE_SUFFIX) for path in paths
        )

    def leave_out(self):
        """Returns how to take a subset: there are no lists."""
        return "remove their images"

    def paths(self, index: int) -> dict[str, pathlib.Path]:
        """Returns the image and the label files of an example."""
        name = f"{self.split}/{self.ids[index]}"
        return {
            "image": self.folders["leftImg8bit"] / f"{name}{_IMAGE_SUFFIX}",
            "semseg": self.folders["gtFine"] / f"{name}_gtFine_labelIds.png",
            "depth": self.folders["disparity"] / f"{name}_disparity.png",
        }

    def _read_labels(
        self, index: int, files: Mapping[str, pathlib.Path], size: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        semseg, disparity = (read_grey(files[name], size) for name in ("semseg", "depth"))
        if disparity.dtype != np.uint16:
            raise DataError(f"{files['depth']} has 8 bits, wanted 16. {AGAIN}")
        disparity = (disparity.astype(np.float32) - 1) / 256
        scored = (disparity > 0) & (disparity < _MAX_DISPARITY)
        return {
            "semseg": to_class_ids(_SEMSEG, semseg, files["semseg"], "label IDs 0 to 33"),
            "depth": np.where(scored, disparity, np.float32(IGNORE))[..., None],
        }
