"""How raw examples are kept in records: features of TFDS, and the way there and back.

| label                      | feature                                                           |
|----------------------------|-------------------------------------------------------------------|
| classes, int32 [h w 1]     | uint8 PNG [h w 1]                                                 |
| normals, float32 [h w 3]   | uint8 PNG [h w 4]: (n + 1) / 2 * 255, and 255, or 0 for ignore    |
| measures, float32 [h w 1]  | float32 [h w 1]                                                   |

The image is the published file's own bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from mtmamba_jax.data_pipelines.builders.files import NORMALS_OF_LEVELS
from mtmamba_jax.data_pipelines.transforms import Example
from mtmamba_jax.tasks import Task

# Each byte of a label compresses well whatever zlib's level; level 1 takes a third of the time.
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)


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


def encode(example: Example, image: bytes, tasks: Sequence[Task]) -> dict[str, Any]:
    """Returns what `features(tasks)` encodes, for a raw example.

    Args:
      example: as in `batch.py`.
      image: the published file that its image was read from.
      tasks: whose labels are kept.
    """
    record = {"image": image, "id": example["id"]}
    for task in tasks:
        label = example[task.name]
        if _is_classes(task):
            record[task.name] = _png(label.astype(np.uint8))
        elif task.label_channels == 3:
            ignored = (label == task.ignore).all(-1, keepdims=True)
            levels = np.where(ignored, 0, np.rint((label + 1) * 127.5)).astype(np.uint8)
            alpha = np.where(ignored, 0, 255).astype(np.uint8)
            record[task.name] = _png(np.concatenate((levels[..., ::-1], alpha), -1))
        else:
            record[task.name] = label
    return record


def decode(record: Mapping[str, Any], tasks: Sequence[Task]) -> Example:
    """Returns the raw example that a decoded record holds; undoes `encode`."""
    example = {"image": record["image"], "id": record["id"].decode()}
    for task in tasks:
        label = record[task.name]
        if _is_classes(task):
            label = label.astype(np.int32)
        elif task.label_channels == 3:
            rgb, alpha = np.ascontiguousarray(label[..., :3]), label[..., 3]
            label = cv2.LUT(rgb, NORMALS_OF_LEVELS)
            if not alpha.all():
                label[alpha == 0] = task.ignore
        example[task.name] = label
    return example


def _is_classes(task: Task) -> bool:
    return task.label_dtype == "int32"


def _png(array: np.ndarray) -> bytes:
    """Returns uint8 [h w 1], or [h w 4] as blue, green, red, alpha, as PNG."""
    return cv2.imencode(".png", array, _PNG)[1].tobytes()
