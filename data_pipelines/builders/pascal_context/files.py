"""PASCAL-Context as multi-task work publishes it: five labels for each photo.

JPEGImages/ID.jpg                      RGB, at most 500x500
semseg/VOC12/ID.png                    VOC's 21 classes, 255 ignore; where there is none:
semseg/pascal-context/ID.png           the same
pascal-context/trainval/ID.mat         LabelMap: classes of PASCAL-Context, uint16
human_parts/ID.mat                     anno: objects with masks of their parts
normals_distill/ID.png                 RGB = (normal + 1) / 2 * 255, of a network
sal_distill/ID.png                     saliency * 255, of a network
ImageSets/Context/{train,val}.txt
ImageSets/Parts/{train,val}.txt        JSON: {ID: classes of its objects}; it, or some IDs, may be
                                       missing: their annotation is read
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import ClassVar

import cv2
import numpy as np

from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.builders.pascal_context.classes import (
    HUMAN_PART_GROUPS,
    NORMALS_CLASSES,
)
from mtmamba_jax.data_pipelines.builders.reading import (
    AGAIN,
    DataError,
    check_size,
    class_id_table,
    read_bytes,
    read_grey,
    read_list,
    read_mat,
    read_normals,
    to_class_ids,
)
from mtmamba_jax.tasks import IGNORE, PASCAL_CONTEXT, VOC_CLASSES

_PERSON = VOC_CLASSES.index("person")
_PART_INDEX = {
    part: index for index, parts in enumerate(HUMAN_PART_GROUPS.values(), start=1) for part in parts
}


class PASCALContext(DatasetFiles):
    """PASCAL-Context, 4,998 training and 5,105 validation images; Mottaghi et al., CVPR 2014."""

    TASKS = PASCAL_CONTEXT
    COUNTS: ClassVar = {"train": 4998, "val": 5105}
    FOLDERS = (
        "JPEGImages",
        "semseg",
        "pascal-context",
        "human_parts",
        "normals_distill",
        "sal_distill",
        "ImageSets",
    )
    ARCHIVES = ("*PASCAL*Context*",)

    @classmethod
    def split_file(cls, folders, split):
        """Returns the list of the split's images."""
        return folders["ImageSets"] / "Context" / f"{split}.txt"

    def _read_ids(self):
        self._objects = self._read_objects()
        return read_list(self.split_file(self.folders, self.split))

    def _read_objects(self) -> dict[str, list[int]] | None:
        """Returns the VOC classes in each image with annotated parts, if the list is there."""
        path = self.folders["ImageSets"] / "Parts" / f"{self.split}.txt"
        if not path.exists():
            return None
        try:
            objects = json.loads(read_bytes(path))
        except ValueError as error:
            raise DataError(f"{path} is no readable JSON ({error}). {AGAIN}") from error
        if not isinstance(objects, dict):
            raise DataError(f"{path} holds no object of image names. {AGAIN}")
        for name, classes in objects.items():
            if not isinstance(classes, list) or any(type(c) not in (int, float) for c in classes):
                raise DataError(
                    f"{path} holds {classes!r} for {name!r}, wanted a list of numbers. {AGAIN}"
                )
        return objects

    def paths(self, index: int) -> dict[str, pathlib.Path]:
        """Returns the image and the label files of an example."""
        name = self.ids[index]
        semseg = self.folders["semseg"] / "VOC12" / f"{name}.png"
        if not semseg.exists():
            semseg = self.folders["semseg"] / "pascal-context" / f"{name}.png"
        files = {
            "image": self.folders["JPEGImages"] / f"{name}.jpg",
            "semseg": semseg,
            "context": self.folders["pascal-context"] / "trainval" / f"{name}.mat",
            "normals": self.folders["normals_distill"] / f"{name}.png",
            "saliency": self.folders["sal_distill"] / f"{name}.png",
        }
        if self._objects is None or _PERSON in self._objects.get(name, (_PERSON,)):
            files["human_parts"] = self.folders["human_parts"] / f"{name}.mat"
        return files

    def _read_labels(
        self, index: int, files: Mapping[str, pathlib.Path], size: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        context = _read_context(files["context"], size)
        normals = read_normals(files["normals"], size)
        # The network that made them is only right on some classes.
        normals[~np.isin(context, NORMALS_CLASSES)] = IGNORE
        semseg = to_class_ids(
            class_id_table(len(VOC_CLASSES)),
            read_grey(files["semseg"], size),
            files["semseg"],
            "0 to 20 and 255 (ignore)",
        )
        saliency = read_grey(files["saliency"], size)
        return {
            "semseg": semseg,
            "human_parts": _read_human_parts(files.get("human_parts"), size),
            "saliency": (saliency > 127).astype(np.int32)[..., None],  # v / 255 > 0.5
            "edge": _boundaries(context),
            "normals": normals,
        }


def _read_context(path: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    context = read_mat(path, "LabelMap")
    if context.ndim != 2 or context.dtype.kind not in "ui":
        raise DataError(
            f"{path}: LabelMap is {context.dtype} {list(context.shape)}, wanted "
            f"whole numbers [h w]. {AGAIN}"
        )
    return check_size(context, size, path)


def _boundaries(context: np.ndarray) -> np.ndarray:
    """Returns where the classes change, one pixel thin, int32 [h w 1]."""
    from skimage.morphology import thin  # with the extra "data" only

    # As float64: OpenCV takes no 32-bit integers, which some archives hold.
    changes = cv2.Laplacian(context.astype(np.float64), cv2.CV_64F)
    return thin(np.abs(changes) > 0).astype(np.int32)[..., None]


def _read_human_parts(path: pathlib.Path | None, size: tuple[int, int]) -> np.ndarray:
    """Returns the groups of people's parts, int32 [h w 1]; 0 is background.

    Of parts that overlap, the last in the file is seen.
    """
    label = np.zeros(size, np.int32)
    if path is None:
        return label[..., None]
    annotation = read_mat(path, "anno")
    try:
        for entry in annotation[0, 0]["objects"].ravel():
            if int(entry["class_ind"].item()) != _PERSON:
                continue
            for part in entry["parts"].ravel():
                name = str(part["part_name"].item())
                if name not in _PART_INDEX:
                    raise DataError(f"{path}: {name!r} is no part of a person. {AGAIN}")
                mask = check_size(part["mask"], size, path)
                label[mask.astype(bool)] = _PART_INDEX[name]
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: anno is not laid out as published ({error}). {AGAIN}") from error
    return label[..., None]
