"""Training batches made the plain way: the baseline of `benchmark --what=input`.

One thread reads the published files with OpenCV, NumPy and SciPy, and makes the labels and the
whole zoomed image before it takes a crop, as the official code's loader does. The recipe is that of
`data_pipelines.transforms`, and without its random part the arrays are equal. Of the package it
takes where files are (`DatasetFiles`), which classes and body parts count, the constants of the
contract and the settings (`AugmentSettings`); reading and transforms are its own. The transforms
also take raw examples from records, so that the two can be timed apart.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import cv2
import numpy as np

from mtmamba_jax.data_pipelines.batch import MEAN, STD
from mtmamba_jax.data_pipelines.builders.cityscapes.files import TRAINED_IDS
from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.builders.pascal_context.classes import (
    HUMAN_PART_GROUPS,
    NORMALS_CLASSES,
)
from mtmamba_jax.data_pipelines.pipeline import Source
from mtmamba_jax.data_pipelines.transforms import AugmentSettings
from mtmamba_jax.tasks import IGNORE, VOC_CLASSES

Files = Mapping[str, pathlib.Path]
Arrays = dict[str, np.ndarray]

_PERSON = VOC_CLASSES.index("person")


class PlainSource(Protocol):
    """Examples by index: uint8 RGB `images`, and labels [h w] or [h w 3] by task.

    Cityscapes' depth is called `disparity`, which a zoom changes the other way.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Arrays: ...


@dataclasses.dataclass(frozen=True)
class Published:
    """A `PlainSource` of published files.

    Attributes:
      name: of the dataset, one of `READERS`.
      layout: one split of its files.
    """

    name: str
    layout: DatasetFiles

    def __len__(self) -> int:
        return len(self.layout)

    def __getitem__(self, index: int) -> Arrays:
        return READERS[self.name](self.layout.paths(index))


@dataclasses.dataclass(frozen=True)
class Raw:
    """A `PlainSource` of raw examples (`data_pipelines.batch`).

    Attributes:
      name: of the dataset.
      source: of its examples.
    """

    name: str
    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Arrays:
        example = dict(self.source[index])
        del example["id"]
        out = {"images": example.pop("image")}
        for task, label in example.items():
            key = "disparity" if (self.name, task) == ("cityscapes", "depth") else task
            out[key] = label[..., 0] if label.shape[-1] == 1 else label
        return out


def plain_batches(
    source: PlainSource,
    *,
    crop_size: tuple[int, int],
    batch_size: int,
    seed: int,
    augment: AugmentSettings,
    label_scale: int = 1,
) -> Iterator[Arrays]:
    """Yields training batches (`data_pipelines.batch`, without `id` and `mask`), without end.

    Args:
      source: the examples.
      crop_size: height and width of the images.
      batch_size: examples in a batch.
      seed: of the order and the augmentation.
      augment: the augmentation.
      label_scale: labels are this many times as high and wide as the images.
    """
    rng = np.random.default_rng(seed)
    examples = []
    while True:
        for index in rng.permutation(len(source)):
            examples.append(_augment(source[index], crop_size, augment, label_scale, rng))
            if len(examples) == batch_size:
                yield {key: np.stack([e[key] for e in examples]) for key in examples[0]}
                examples.clear()


def _rgb(path: pathlib.Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def _grey(path: pathlib.Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def _normals(path: pathlib.Path) -> np.ndarray:
    return 2 * _rgb(path).astype(np.float32) / 255 - 1


def _read_nyudv2(files: Files) -> Arrays:
    semseg = _grey(files["semseg"]).astype(np.int32) - 1
    depth = np.load(files["depth"])
    return {
        "images": _rgb(files["image"]),
        "semseg": np.where(semseg < 0, IGNORE, semseg),
        "depth": np.where(depth == 0, np.float32(IGNORE), depth),
        "edge": (_grey(files["edge"]) > 0).astype(np.int32),
        "normals": _normals(files["normals"]),
    }


def _read_pascal_context(files: Files) -> Arrays:
    import scipy.io  # with the extra "data" only
    from skimage.morphology import thin

    image = _rgb(files["image"])
    context = scipy.io.loadmat(files["context"])["LabelMap"]
    parts = np.zeros(image.shape[:2], np.int32)
    if "human_parts" in files:
        groups = {name: i for i, v in enumerate(HUMAN_PART_GROUPS.values(), 1) for name in v}
        for entry in scipy.io.loadmat(files["human_parts"])["anno"][0, 0]["objects"].ravel():
            if entry["class_ind"].item() == _PERSON:
                for part in entry["parts"].ravel():
                    parts[part["mask"] > 0] = groups[part["part_name"].item()]
    normals = _normals(files["normals"])
    normals[~np.isin(context, NORMALS_CLASSES)] = IGNORE
    return {
        "images": image,
        "semseg": _grey(files["semseg"]).astype(np.int32),
        "human_parts": parts,
        "saliency": (_grey(files["saliency"]) > 127).astype(np.int32),
        "edge": thin(np.abs(cv2.Laplacian(context, cv2.CV_64F)) > 0).astype(np.int32),
        "normals": normals,
    }


def _read_cityscapes(files: Files) -> Arrays:
    table = np.full(256, IGNORE, np.int32)
    table[list(TRAINED_IDS)] = np.arange(len(TRAINED_IDS))
    disparity = (_grey(files["depth"]).astype(np.float32) - 1) / 256
    scored = (disparity > 0) & (disparity < 80)
    return {
        "images": _rgb(files["image"]),
        "semseg": table[_grey(files["semseg"])],
        "disparity": np.where(scored, disparity, np.float32(IGNORE)),
    }


READERS: dict[str, Callable[[Files], Arrays]] = {
    "nyudv2": _read_nyudv2,
    "pascal_context": _read_pascal_context,
    "cityscapes": _read_cityscapes,
}
"""(an example's files) -> what a `PlainSource` holds, by dataset."""


def _augment(
    example: Arrays,
    crop_size: tuple[int, int],
    augment: AugmentSettings,
    label_scale: int,
    rng: np.random.Generator,
) -> Arrays:
    example = _zoom(example, rng.uniform(*augment.scale))
    example = _crop(example, [n * label_scale for n in crop_size], augment, rng)
    if rng.random() < augment.flip_probability:
        example = {key: np.ascontiguousarray(value[:, ::-1]) for key, value in example.items()}
        if "normals" in example:
            x = example["normals"][..., 0]
            x[x != IGNORE] *= -1
    image = example["images"]
    height, width = (n // label_scale for n in image.shape[:2])
    if label_scale > 1:
        whole = image[: height * label_scale, : width * label_scale]
        image = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    image = (_jitter(image, augment, rng).astype(np.float32) / 255 - MEAN) / STD
    top, left = ((padded - n) // 2 for padded, n in zip(crop_size, (height, width), strict=True))
    out = {"images": _pad(image, (top, left), crop_size, 0), "size": np.int32((height, width))}
    for key, label in example.items():
        if key != "images":
            label = label[: height * label_scale, : width * label_scale]
            label = label.reshape(*label.shape[:2], -1)
            if key == "human_parts" and np.isin(label, (0, IGNORE)).all():  # nobody is seen
                label = np.full_like(label, IGNORE)
            place = (top * label_scale, left * label_scale)
            key = "depth" if key == "disparity" else key  # the task's name
            out[key] = _pad(label, place, [n * label_scale for n in crop_size], IGNORE)
    return out


def _zoom(example: Arrays, scale: float) -> Arrays:
    height, width = (max(1, round(n * scale)) for n in example["images"].shape[:2])
    out = {}
    for key, value in example.items():
        kind = cv2.INTER_LINEAR if key == "images" else cv2.INTER_NEAREST_EXACT
        out[key] = cv2.resize(value, (width, height), interpolation=kind)
    for key, factor in (("depth", 1 / scale), ("disparity", scale)):
        if key in out:
            out[key][out[key] != IGNORE] *= np.float32(factor)
    return out


def _crop(
    example: Arrays, size: Sequence[int], augment: AugmentSettings, rng: np.random.Generator
) -> Arrays:
    height, width = example["images"].shape[:2]
    rows, columns = min(height, size[0]), min(width, size[1])
    for _ in range(augment.crop_tries):
        top = rng.integers(height - rows + 1)
        left = rng.integers(width - columns + 1)
        window = (slice(top, top + rows), slice(left, left + columns))
        counts = np.bincount(example["semseg"][window].ravel(), minlength=256)[:IGNORE]
        if 0 < counts.max() <= augment.max_class_share * counts.sum():
            break
    return {key: value[window] for key, value in example.items()}


def _jitter(image: np.ndarray, augment: AugmentSettings, rng: np.random.Generator) -> np.ndarray:
    def chosen() -> bool:
        return rng.random() < augment.jitter_probability

    def clipped(values: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)

    if chosen():
        image = clipped(image + np.float32(rng.uniform(-augment.brightness, augment.brightness)))
    contrast = np.float32(rng.uniform(*augment.contrast)) if chosen() else None
    contrast_first = rng.random() < 0.5
    if contrast is not None and contrast_first:
        image = clipped(image * contrast)
    saturation, hue = chosen(), chosen()
    if saturation or hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        if saturation:
            hsv[..., 1] = clipped(hsv[..., 1] * np.float32(rng.uniform(*augment.saturation)))
        if hue:
            turn = int(rng.integers(-augment.hue, augment.hue + 1))
            hsv[..., 0] = (hsv[..., 0].astype(np.int16) + turn) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast is not None and not contrast_first:
        image = clipped(image * contrast)
    return image


def _pad(array: np.ndarray, place: Sequence[int], size: Sequence[int], fill: float) -> np.ndarray:
    padded = np.full((*size, array.shape[-1]), fill, array.dtype)
    top, left = place
    padded[top : top + array.shape[0], left : left + array.shape[1]] = array
    return padded
