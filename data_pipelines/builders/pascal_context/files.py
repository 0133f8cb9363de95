"""PASCAL-Context as published for multi-task learning: photos with five labels.

JPEGImages/ID.jpg                      RGB, at most 500x500
semseg/VOC12/ID.png                    VOC's 21 classes, 255: ignore; if it does not exist:
semseg/pascal-context/ID.png           the same
pascal-context/trainval/ID.mat         LabelMap: classes of PASCAL-Context, uint16
human_parts/ID.mat                     anno: objects with masks of their parts
normals_distill/ID.png                 RGB = (normal + 1) / 2 * 255, predicted by a network
sal_distill/ID.png                     saliency * 255, predicted by a network
ImageSets/Context/{train,val}.txt
ImageSets/Parts/{train,val}.txt        JSON, {ID: classes of the objects in the image}; optional,
                                       as are its entries: the annotation is read instead
"""

import json
import pathlib
from typing import ClassVar

import cv2
import numpy as np
from jaxtyping import Int32, Integer

from mtmamba_jax.data_pipelines import read_files
from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.builders.pascal_context.classes import (
    HUMAN_PART_GROUPS,
    NORMALS_CLASSES,
)
from mtmamba_jax.data_pipelines.read_files import COPY_AGAIN, DataError
from mtmamba_jax.tasks.table import HUMAN_PART_CLASSES, IGNORE, PASCAL_CONTEXT, VOC_CLASSES

_PERSON = VOC_CLASSES.index("person")
_PART_IDS = {
    part: HUMAN_PART_CLASSES.index(group)
    for group, parts in HUMAN_PART_GROUPS.items()
    for part in parts
}


class PASCALContext(DatasetFiles):
    """PASCAL-Context, 4,998 training and 5,105 validation images; Mottaghi et al., CVPR 2014."""

    TASKS = PASCAL_CONTEXT
    COUNTS: ClassVar = {"train": 4998, "val": 5105}
    FOLDERS = ("JPEGImages", "semseg", "pascal-context", "human_parts", "normals_distill",
               "sal_distill", "ImageSets")  # fmt: skip
    SPLIT_PATH = "ImageSets/Context/{split}.txt"
    PATHS: ClassVar = {
        "image": "JPEGImages/{id}.jpg",
        "semseg": "semseg/VOC12/{id}.png",
        "context": "pascal-context/trainval/{id}.mat",
        "normals": "normals_distill/{id}.png",
        "saliency": "sal_distill/{id}.png",
        "human_parts": "human_parts/{id}.mat",
    }
    ARCHIVES = ("*PASCAL*Context*",)

    def _read_ids(self):
        self._objects = self._read_objects()
        return super()._read_ids()

    def _read_objects(self) -> dict[str, list[int]] | None:
        """Returns the VOC classes in each image with annotated parts, or None without a list."""
        path = self.folders["ImageSets"] / "Parts" / f"{self.split}.txt"
        if not path.exists():
            return None
        try:
            objects = json.loads(read_files.read_bytes(path))
        except ValueError as error:
            raise DataError(f"{path} is not readable JSON ({error}). {COPY_AGAIN}") from error
        if not isinstance(objects, dict):
            raise DataError(f"{path} is not a JSON object with image names as keys. {COPY_AGAIN}")
        for name, classes in objects.items():
            if not isinstance(classes, list) or any(type(c) not in (int, float) for c in classes):
                raise DataError(
                    f"{path} holds {classes!r} for {name!r}, expected a list of numbers. "
                    f"{COPY_AGAIN}"
                )
        return objects

    def paths(self, index: int) -> dict[str, pathlib.Path]:
        """Returns the paths of an example's files; "human_parts" unless no person is listed."""
        name, paths = self.ids[index], super().paths(index)
        if not paths["semseg"].exists():
            paths["semseg"] = self.folders["semseg"] / "pascal-context" / f"{name}.png"
        if self._objects is not None and _PERSON not in self._objects.get(name, (_PERSON,)):
            del paths["human_parts"]
        return paths

    def _read_labels(self, paths, size):
        context = _read_context(paths["context"], size)
        normals = read_files.read_normals(paths["normals"], size)
        # The network that predicted them is reliable on some classes only.
        normals[~np.isin(context, NORMALS_CLASSES)] = IGNORE
        semseg = read_files.read_grey(paths["semseg"], size)
        table = read_files.class_id_table(len(VOC_CLASSES))
        saliency = read_files.read_grey(paths["saliency"], size)
        return {
            "semseg": read_files.to_class_ids(
                table, semseg, paths["semseg"], "0 to 20 and 255 (ignore)"
            ),
            "human_parts": _read_human_parts(paths.get("human_parts"), size),
            "saliency": (saliency > 127).astype(np.int32)[..., None],  # v / 255 > 0.5
            "edge": _boundaries(context),
            "normals": normals,
        }


def _read_context(path: pathlib.Path, size: tuple[int, int]) -> Integer[np.ndarray, "h w"]:
    context = read_files.read_mat(path, "LabelMap")
    if context.ndim != 2 or context.dtype.kind not in "ui":
        raise DataError(
            f"{path}: LabelMap is {context.dtype} {list(context.shape)}, expected integers [h w]. "
            f"{COPY_AGAIN}"
        )
    return read_files.check_size(context, size, path)


def _boundaries(context: Integer[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w 1"]:
    """Returns 1 where the class changes, thinned to one pixel."""
    from skimage.morphology import thin  # installed with the extra "data"

    # As float64: OpenCV does not support 32-bit integers, which some archives hold.
    changes = cv2.Laplacian(context.astype(np.float64), cv2.CV_64F)
    return thin(np.abs(changes) > 0).astype(np.int32)[..., None]


def _read_human_parts(
    path: pathlib.Path | None, size: tuple[int, int]
) -> Int32[np.ndarray, "h w 1"]:
    """Returns part IDs, 0 for background; where parts overlap, the last one in the file counts."""
    label = np.zeros(size, np.int32)
    if path is None:
        return label[..., None]
    annotation = read_files.read_mat(path, "anno")
    try:
        for entry in annotation[0, 0]["objects"].ravel():
            if int(entry["class_ind"].item()) != _PERSON:
                continue
            for part in entry["parts"].ravel():
                name = str(part["part_name"].item())
                if name not in _PART_IDS:
                    raise DataError(f"{path}: {name!r} is not a part of a person. {COPY_AGAIN}")
                mask = read_files.check_size(part["mask"], size, path)
                label[mask.astype(bool)] = _PART_IDS[name]
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: anno is not structured as published ({error}). {COPY_AGAIN}"
        ) from error
    return label[..., None]
