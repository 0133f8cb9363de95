"""How raw examples are kept in records: features of TFDS, and the way there and back.

| label                      | feature                                                           |
|----------------------------|-------------------------------------------------------------------|
| classes, int32 [h w 1]     | uint8 PNG [h w 1]                                                 |
| normals, float32 [h w 3]   | uint8 PNG [h w 4]: (n + 1) / 2 * 255, and 255, or 0 for ignore    |
| measures, float32 [h w 1]  | float32 [h w 1]                                                   |

The image is the published file's own bytes, or a PNG of its pixels: where the bytes would be
decoded to others, and where a builder asks for one that is quick to read. TFDS can decode all of
it, but takes longer than `decode`, which the input pipeline uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from mtmamba_jax.data_pipelines.builders.reading import NORMALS_OF_LEVELS
from mtmamba_jax.data_pipelines.transforms import Example
from mtmamba_jax.tasks import Task

# How PNGs are packed decides how fast they are read. Milliseconds for 425x560 pixels, and kB:
# regions without a filter 0.16 and 5.5, with zlib's level 1 and OpenCV's choice of filters 0.46
# and 9.5; normals filtered upwards 3.5 and 233, with OpenCV's choice 4.7 and 227.
_CLASSES_PNG = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 6),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
)
_NORMALS_PNG = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
)
# A photo of 425x560: 430 kB and 4.7 ms, unpacked 716 kB and 0.45 ms.
_PHOTO_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)
_UNPACKED_PNG = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 0),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
)


def features(tasks: Sequence[Task]) -> tfds.features.FeaturesDict:
    """Returns the features of a dataset with labels for these tasks."""
    described = {
        "image": tfds.features.Image(shape=(None, None, 3), doc="RGB photo."),
        "id": tfds.features.Text(doc="Names the example: its file, as published."),
    }
    for task in tasks:
        if _is_classes(task):
            names = ", ".join(task.class_names) or "no boundary, boundary"
            feature = tfds.features.Image(
                shape=(None, None, 1),
                encoding_format="png",
                doc=f"Classes: {names}. {task.ignore}: not labelled.",
            )
        elif task.label_channels == 3:
            feature = tfds.features.Image(
                shape=(None, None, 4),
                encoding_format="png",
                doc="Unit vector = 2 * RGB / 255 - 1; x right, y up, z towards the camera. "
                "Alpha 0: not labelled.",
            )
        else:
            feature = tfds.features.Tensor(
                shape=(None, None, 1),
                dtype=np.float32,
                encoding="bytes",
                doc=f"In {task.unit}. {task.ignore}: not labelled.",
            )
        described[task.name] = feature
    return tfds.features.FeaturesDict(described)


def encode(
    example: Example, image: bytes, tasks: Sequence[Task], *, unpack_photo: bool = False
) -> dict[str, Any]:
    """Returns what `features(tasks)` encodes, for a raw example.

    Args:
      example: as in `batch.py`.
      image: the published file that its image was read from.
      tasks: whose labels are kept.
      unpack_photo: keep the photo as a PNG that is not compressed.
    """
    # Other pixels: stored turned or grey, or unpacked a little differently by OpenCV.
    if unpack_photo or not np.array_equal(_decode_photo(image), example["image"]):
        image = _png(example["image"][..., ::-1], _UNPACKED_PNG if unpack_photo else _PHOTO_PNG)
    record = {"image": image, "id": example["id"]}
    for task in tasks:
        label = example[task.name]
        if _is_classes(task):
            record[task.name] = _png(label.astype(np.uint8), _CLASSES_PNG)
        elif task.label_channels == 3:
            ignored = (label == task.ignore).all(-1, keepdims=True)
            levels = np.where(ignored, 0, np.rint((label + 1) * 127.5)).astype(np.uint8)
            alpha = np.where(ignored, 0, 255).astype(np.uint8)
            record[task.name] = _png(np.concatenate((levels[..., ::-1], alpha), -1), _NORMALS_PNG)
        else:
            record[task.name] = label
    return record


def decode(record: Mapping[str, Any], tasks: Sequence[Task]) -> Example:
    """Returns the raw example that a record holds; undoes `encode`.

    Args:
      record: as TFDS reads it, with `SkipDecoding` for every feature.
      tasks: whose labels are decoded; the others cost nothing.
    """
    example = {"image": _decode_photo(record["image"]), "id": record["id"].decode()}
    for task in tasks:
        value = record[task.name]
        if _is_classes(task):
            label = _unpack(value, cv2.IMREAD_UNCHANGED).astype(np.int32)[..., None]
        elif task.label_channels == 3:
            label = _decode_normals(_unpack(value, cv2.IMREAD_UNCHANGED), task.ignore)
        else:
            label = np.frombuffer(value["value"], np.float32).reshape(value["shape"])
        example[task.name] = label
    return example


def _decode_photo(data: bytes) -> np.ndarray:
    """Returns uint8 RGB [h w 3]."""
    return cv2.cvtColor(_unpack(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _decode_normals(levels: np.ndarray, ignore: int) -> np.ndarray:
    """Returns unit vectors, float32 [h w 3], for blue, green, red, alpha, uint8 [h w 4]."""
    # cvtColor and LUT: a quarter of the time of the same in NumPy.
    label = cv2.LUT(cv2.cvtColor(levels, cv2.COLOR_BGRA2RGB), NORMALS_OF_LEVELS)
    ignored = cv2.compare(cv2.extractChannel(levels, 3), 0, cv2.CMP_EQ)
    if cv2.countNonZero(ignored):
        cv2.copyTo(np.full_like(label, ignore), ignored, label)
    return label


def _unpack(data: bytes, flags: int) -> np.ndarray:
    """Returns a decoded PNG or JPEG.

    Raises:
      ValueError: it is damaged.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError(f"a picture of {len(data)} bytes cannot be decoded")
    return image


def _is_classes(task: Task) -> bool:
    return task.label_dtype == "int32"


def _png(array: np.ndarray, settings: Sequence[int]) -> bytes:
    """Returns uint8 [h w 1], or [h w 4] as blue, green, red, alpha, as PNG."""
    return cv2.imencode(".png", array, settings)[1].tobytes()
