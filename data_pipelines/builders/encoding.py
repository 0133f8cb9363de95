"""How examples are stored in records: their TFDS features, encoding and fast decoding.

| label                      | feature                                                           |
|----------------------------|-------------------------------------------------------------------|
| class IDs, int32 [h w 1]   | uint8 PNG [h w 1]                                                 |
| normals, float32 [h w 3]   | uint8 PNG [h w 4]: (n + 1) / 2 * 255; alpha 255, or 0 for ignore  |
| other float32 [h w 1]      | float32 [h w 1]                                                   |

The image is stored as the bytes of the published file, or as a PNG of its pixels where those bytes
would be decoded to different pixels or where a builder asks for a faster format. TFDS can decode
all features too, but takes longer than `decode`, which the input pipeline uses.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32, UInt8

from mtmamba_jax.data_pipelines.batch import Example
from mtmamba_jax.data_pipelines.read_files import NORMAL_OF_LEVEL
from mtmamba_jax.tasks.readout import normal_levels
from mtmamba_jax.tasks.table import IGNORE, Task

# PNG settings decide how fast an image is read. Milliseconds and kB for 425x560 pixels: class IDs
# without a filter 0.16 and 5.5, with zlib's level 1 and OpenCV's choice of filters 0.46 and 9.5;
# normals with the Up filter 3.5 and 233, with OpenCV's choice 4.7 and 227.
_NO_FILTER = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
_UP_FILTER = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)
_CLASSES_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 6, *_NO_FILTER)
_NORMALS_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1, *_UP_FILTER)
# A photo of 425x560: 430 kB and 4.7 ms; uncompressed 716 kB and 0.45 ms.
_PHOTO_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)
_UNPACKED_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 0, *_NO_FILTER)


def create_features(tasks: Sequence[Task]) -> tfds.features.FeaturesDict:
    """Returns the TFDS features of a dataset with labels for the tasks."""
    described = {
        "image": tfds.features.Image(shape=(None, None, 3), doc="RGB photo."),
        "id": tfds.features.Text(doc="Names the example: its file, as published."),
    }
    for task in tasks:
        if task.num_classes:
            names = ", ".join(task.class_names) or "no boundary, boundary"
            doc = f"Classes: {names}. {task.ignore}: not labelled."
            feature = tfds.features.Image(shape=(None, None, 1), encoding_format="png", doc=doc)
        elif task.label_channels == 3:
            doc = (
                "Unit vector = 2 * RGB / 255 - 1; x right, y up, z towards the camera. "
                "Alpha 0: not labelled."
            )
            feature = tfds.features.Image(shape=(None, None, 4), encoding_format="png", doc=doc)
        else:
            doc = f"In {task.unit}. {task.ignore}: not labelled."
            feature = tfds.features.Tensor(
                shape=(None, None, 1), dtype=np.float32, encoding="bytes", doc=doc
            )
        described[task.name] = feature
    return tfds.features.FeaturesDict(described)


def encode(
    example: Example, image: bytes, tasks: Sequence[Task], *, unpack_photo: bool = False
) -> dict[str, Any]:
    """Encodes a raw example as input for `create_features(tasks).encode_example`.

    Args:
      image: Contents of the published file that the image was read from.
      unpack_photo: Whether to store the photo as an uncompressed PNG.
    """
    # OpenCV decodes some files to other pixels: grey ones, those with an EXIF orientation, and some
    # JPEGs by a level or two.
    if unpack_photo or not np.array_equal(_decode_photo(image), example["image"]):
        settings = _UNPACKED_PNG if unpack_photo else _PHOTO_PNG
        image = _encode_png(example["image"][..., ::-1], settings)
    record = {"image": image, "id": example["id"]}
    for task in tasks:
        label = example[task.name]
        if task.num_classes:
            record[task.name] = _encode_png(label.astype(np.uint8), _CLASSES_PNG)
        elif task.label_channels == 3:
            ignored = (label == task.ignore).all(-1, keepdims=True)
            levels = np.where(ignored, 0, normal_levels(label))
            alpha = np.where(ignored, 0, 255).astype(np.uint8)
            bgra = np.concatenate((levels[..., ::-1], alpha), -1)
            record[task.name] = _encode_png(bgra, _NORMALS_PNG)
        else:
            record[task.name] = label
    return record


def decode(record: Mapping[str, Any], tasks: Sequence[Task]) -> Example:
    """Returns the raw example of a record, which TFDS read with `SkipDecoding` for every feature.

    Only the labels of `tasks` are decoded; a damaged image raises ValueError.
    """
    example = {"image": _decode_photo(record["image"]), "id": record["id"].decode()}
    for task in tasks:
        value = record[task.name]
        if task.num_classes:
            label = _decode_image(value, cv2.IMREAD_UNCHANGED).astype(np.int32)[..., None]
        elif task.label_channels == 3:
            label = _decode_normals(_decode_image(value, cv2.IMREAD_UNCHANGED), task.ignore)
        else:
            label = np.frombuffer(value["value"], np.float32).reshape(value["shape"])
            if task.ignore != IGNORE:  # the value in the records
                label = np.where(label == IGNORE, np.float32(task.ignore), label)
        example[task.name] = label
    return example


def _decode_photo(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    return cv2.cvtColor(_decode_image(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _decode_normals(bgra: UInt8[np.ndarray, "h w 4"], ignore: int) -> Float32[np.ndarray, "h w 3"]:
    # cvtColor and LUT take a quarter of the time of the same in NumPy.
    label = cv2.LUT(cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGB), NORMAL_OF_LEVEL)
    ignored = cv2.inRange(cv2.extractChannel(bgra, 3), np.zeros(1), np.zeros(1))
    if cv2.countNonZero(ignored):
        cv2.copyTo(np.full_like(label, ignore), ignored, label)
    return label


def _decode_image(data: bytes, flags: int) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError(f"an image of {len(data)} bytes cannot be decoded")
    return image


def _encode_png(array: np.ndarray, settings: Sequence[int]) -> bytes:
    """Encodes uint8 [h w 1], or [h w 3 or 4] in OpenCV's order BGRA."""
    return cv2.imencode(".png", array, settings)[1].tobytes()
