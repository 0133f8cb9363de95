"""NYUDv2 as multi-task work publishes it: 425x560 pixels, four labels for each.

images/ID.png         RGB
segmentation/ID.png   0: no class; 1 to 40
edge/ID.png           0 or 255
normals/ID.png        RGB = (normal + 1) / 2 * 255
depth/ID.npy          metres, float32; 0: not measured
gt_sets/{train,val}.txt
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.builders.reading import (
    DataError,
    read_depth,
    read_grey,
    read_list,
    read_normals,
    read_photo,
    to_class_ids,
)
from mtmamba_jax.tasks import IGNORE, NYUDV2

_OLD_SIZE = (480, 640)
_SEMSEG = np.array([IGNORE, *range(40)], np.int32)
_EDGE = np.full(256, -1, np.int32)
_EDGE[[0, 255]] = (0, 1)


class NYUDv2(DatasetFiles):
    """NYUDv2, 795 training and 654 test images; Silberman et al., ECCV 2012."""

    TASKS = NYUDV2
    COUNTS: ClassVar = {"train": 795, "val": 654}
    FOLDERS = ("images", "segmentation", "edge", "normals", "depth", "gt_sets")
    ARCHIVES = ("*NYUD*",)

    @classmethod
    def split_file(cls, folders, split):
        """Returns the list of the split's images."""
        return folders["gt_sets"] / f"{split}.txt"

    def _read_ids(self):
        return read_list(self.split_file(self.folders, self.split))

    def paths(self, index: int) -> dict[str, pathlib.Path]:
        """Returns the image and the label files of an example."""
        name = self.ids[index]
        return {
            "image": self.folders["images"] / f"{name}.png",
            "semseg": self.folders["segmentation"] / f"{name}.png",
            "edge": self.folders["edge"] / f"{name}.png",
            "normals": self.folders["normals"] / f"{name}.png",
            "depth": self.folders["depth"] / f"{name}.npy",
        }

    def _read_image(self, path):
        image = read_photo(path)
        if image.shape[:2] == _OLD_SIZE:
            raise DataError(
                f"{path} is 480x640: this is an older NYUDv2 archive. The published protocol "
                "takes images of 425x560; get the archive that multi-task work uses."
            )
        return image

    def _read_labels(
        self, index: int, files: Mapping[str, pathlib.Path], size: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        semseg, edge = (read_grey(files[name], size) for name in ("semseg", "edge"))
        return {
            "semseg": to_class_ids(_SEMSEG, semseg, files["semseg"], "0 (no class) to 40"),
            "depth": read_depth(files["depth"], size),
            "edge": to_class_ids(_EDGE, edge, files["edge"], "0 and 255"),
            "normals": read_normals(files["normals"], size),
        }
