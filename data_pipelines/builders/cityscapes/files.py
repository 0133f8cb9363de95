"""Cityscapes as published: street scenes of 1024x2048 pixels.

leftImg8bit/{train,val}/CITY/ID_leftImg8bit.png    RGB
gtFine/{train,val}/CITY/ID_gtFine_labelIds.png     label IDs, of which 19 are trained
disparity/{train,val}/CITY/ID_disparity.png        16 bits: 256 d + 1; 0: not measured
"""

from typing import ClassVar

import numpy as np

from mtmamba_jax.data_pipelines import read_files
from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.read_files import COPY_AGAIN, DataError
from mtmamba_jax.tasks.table import CITYSCAPES, IGNORE

# Label IDs of the 19 training classes in order; the 15 others are not trained (Cordts et al.,
# CVPR 2016, and its label definitions).
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
    SPLIT_PATH = "leftImg8bit/{split}"
    PATHS: ClassVar = {
        "image": "leftImg8bit/{split}/{id}" + _IMAGE_SUFFIX,
        "semseg": "gtFine/{split}/{id}_gtFine_labelIds.png",
        "depth": "disparity/{split}/{id}_disparity.png",
    }
    ARCHIVES = ("leftImg8bit_trainvaltest*", "gtFine_trainvaltest*", "disparity_trainvaltest*")

    def _read_ids(self):
        folder = self.split_path(self.folders, self.split)
        images = sorted(folder.glob(f"*/*{_IMAGE_SUFFIX}"))
        if not images:
            raise DataError(f"{folder} has no images CITY/*{_IMAGE_SUFFIX}. {COPY_AGAIN}")
        return tuple(
            image.relative_to(folder).as_posix().removesuffix(_IMAGE_SUFFIX) for image in images
        )

    def how_to_exclude(self):
        """Returns what a user must do to exclude some examples; Cityscapes has no lists."""
        return "remove their images"

    def _read_labels(self, paths, size):
        semseg, disparity = (
            read_files.read_grey(paths[name], size) for name in ("semseg", "depth")
        )
        if disparity.dtype != np.uint16:
            raise DataError(f"{paths['depth']} has 8 bits, expected 16. {COPY_AGAIN}")
        disparity = (disparity.astype(np.float32) - 1) / 256
        scored = (disparity > 0) & (disparity < _MAX_DISPARITY)
        return {
            "semseg": read_files.to_class_ids(
                _SEMSEG, semseg, paths["semseg"], "label IDs 0 to 33"
            ),
            "depth": np.where(scored, disparity, np.float32(IGNORE))[..., None],
        }
