"""NYUDv2 as published for multi-task learning: images of 425x560 pixels with four labels.

images/ID.png         RGB
segmentation/ID.png   class 1 to 40; 0: not labelled
edge/ID.png           0 or 255
normals/ID.png        RGB = (normal + 1) / 2 * 255
depth/ID.npy          metres, float32; 0: not measured
gt_sets/{train,val}.txt
"""

from typing import ClassVar

import numpy as np

from mtmamba_jax.data_pipelines import read_files
from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.read_files import DataError
from mtmamba_jax.tasks.table import IGNORE, NYUDV2

_OLD_SIZE = (480, 640)
_SEMSEG = np.array([IGNORE, *range(40)], np.int32)
_EDGE = np.full(256, -1, np.int32)
_EDGE[[0, 255]] = (0, 1)


class NYUDv2(DatasetFiles):
    """NYUDv2, 795 training and 654 test images; Silberman et al., ECCV 2012."""

    TASKS = NYUDV2
    COUNTS: ClassVar = {"train": 795, "val": 654}
    FOLDERS = ("images", "segmentation", "edge", "normals", "depth", "gt_sets")
    SPLIT_PATH = "gt_sets/{split}.txt"
    PATHS: ClassVar = {
        "image": "images/{id}.png",
        "semseg": "segmentation/{id}.png",
        "edge": "edge/{id}.png",
        "normals": "normals/{id}.png",
        "depth": "depth/{id}.npy",
    }
    ARCHIVES = ("*NYUD*",)

    def _read_image(self, path):
        image = read_files.read_published_photo(path)
        if image.shape[:2] == _OLD_SIZE:
            raise DataError(
                f"{path} is 480x640: this is an older NYUDv2 archive. The published protocol uses "
                "images of 425x560; get the archive that multi-task work uses."
            )
        return image

    def _read_labels(self, paths, size):
        semseg, edge = (read_files.read_grey(paths[name], size) for name in ("semseg", "edge"))
        return {
            "semseg": read_files.to_class_ids(
                _SEMSEG, semseg, paths["semseg"], "0 (no class) to 40"
            ),
            "depth": read_files.read_depth(paths["depth"], size),
            "edge": read_files.to_class_ids(_EDGE, edge, paths["edge"], "0 and 255"),
            "normals": read_files.read_normals(paths["normals"], size),
        }
