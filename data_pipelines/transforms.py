"""Transforms of one example: augmentation for training; normalising and padding for evaluation.

Examples are those of `batch.py`; image and labels are of one size up to `Shrink`, which leaves
labels on a finer grid, and the image is uint8 up to `NormaliseAndPad`, which comes last. What
happens to a label is read from its row of the task table. The recipe is that of the official
MTMamba code.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from mtmamba_jax.data_pipelines.batch import MEAN, STD, pad_offset
from mtmamba_jax.data_pipelines.pixels import (
    Window,
    frame,
    label_windows,
    multiply,
    negate_x,
    zoom_image,
    zoom_label,
)
from mtmamba_jax.tasks import Task

Example = dict[str, Any]


class Transform(abc.ABC):
    """A function of one example; what it may draw at random comes from the rng it is given."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the transformed example. The given one and its arrays stay as they are."""
        return self._apply(example, rng)

    @abc.abstractmethod
    def _apply(self, example: Example, rng: np.random.Generator) -> Example: ...


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """How strongly training images are varied; the defaults are the published recipe.

    Attributes:
      scale: the range of the random zoom.
      max_class_share: a crop is drawn again while one class fills more than this share of it.
      crop_tries: crops drawn at most; the last one is taken as it is.
      flip_probability: of mirroring left to right.
      brightness: largest shift of the 0..255 values.
      contrast: the range of the factor on the values.
      saturation: the range of the factor on HSV saturation.
      hue: largest turn in OpenCV's 8-bit hue units of 2 degrees (18: 36 degrees).
      jitter_probability: of each of the four colour changes.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    crop_tries: int = 10
    flip_probability: float = 0.5
    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 18
    jitter_probability: float = 0.5

    def __post_init__(self):
        for name in ("scale", "contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: wanted 0 < low <= high, got ({low}, {high}).")
        for name in ("max_class_share", "flip_probability", "jitter_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: wanted a value in 0..1, got {getattr(self, name)}.")
        if self.crop_tries < 1:
            raise ValueError(f"crop_tries: wanted at least 1, got {self.crop_tries}.")
        if self.brightness < 0 or not 0 <= self.hue <= 90:
            raise ValueError(
                f"wanted brightness >= 0 and hue in 0..90, got {self.brightness} and {self.hue}."
            )


@dataclasses.dataclass(frozen=True)
class RandomZoomCrop(Transform):
    """Zooms by s, uniform in [low, high), and cuts out `size`, or less where the image is smaller.

    The image is zoomed linearly, labels to the nearest pixel; only what is cut out is computed. A
    surface twice as large on the image is taken to be half as far away: distances become d / s, as
    `Task.scale_power` says.

    Of up to `tries` places, takes the first whose largest class covers at most `max_share` of its
    valid pixels, else the last. Counted on the set's first class task, which is the semantic one
    (on parts or saliency the background would fail nearly every crop); without one, any place does.
    """

    tasks: tuple[Task, ...]
    low: float
    high: float
    size: tuple[int, int]
    tries: int
    max_share: float

    def _apply(self, example: Example, rng: np.random.Generator) -> Example:
        scale = rng.uniform(self.low, self.high)
        zoomed = tuple(max(1, round(n * scale)) for n in example["image"].shape[:2])
        window = self._draw_window(example, zoomed, rng)
        out = dict(example)
        out["image"] = zoom_image(example["image"], zoomed, window)
        for task in self.tasks:
            out[task.name] = zoom_label(example[task.name], zoomed, window)
            if task.scale_power:
                multiply(out[task.name], scale**task.scale_power, task.ignore)
        return out

    def _draw_window(self, example, zoomed, rng) -> Window:
        size = tuple(min(n, wanted) for n, wanted in zip(zoomed, self.size, strict=True))
        task = next((task for task in self.tasks if task.class_names), None)
        if task and size != zoomed:
            # Classes and the ignore value fit in 8 bits, of which OpenCV makes histograms.
            look = label_windows(example[task.name].astype(np.uint8), zoomed, size)
        for _ in range(self.tries):
            start = [int(rng.integers(n - m + 1)) for n, m in zip(zoomed, size, strict=True)]
            window = tuple(slice(first, first + m) for first, m in zip(start, size, strict=True))
            if not task or size == zoomed:
                break
            counts = cv2.calcHist([look(window)], [0], None, [256], [0, 256])
            counts[task.ignore] = 0
            if 0 < counts.max() <= self.max_share * counts.sum():
                break
        return window


@dataclasses.dataclass(frozen=True)
class Shrink(Transform):
    """Makes the uint8 image `factor` times smaller, each pixel the mean of factor x factor.

    Labels stay as they are, but for the last rows and columns: image and labels lose those beyond
    a multiple of `factor`, so that labels are exactly `factor` times as high and wide.

    Raises:
      ValueError: the image has fewer rows or columns than `factor`.
    """

    tasks: tuple[Task, ...]
    factor: int

    def _apply(self, example: Example, rng: np.random.Generator) -> Example:
        height, width = (n // self.factor for n in example["image"].shape[:2])
        if not height or not width:
            raise ValueError(
                f"an image of shape {example['image'].shape} cannot be made {self.factor} times "
                f"smaller; wanted at least {self.factor} rows and columns."
            )
        window = (slice(height * self.factor), slice(width * self.factor))
        out = dict(example)
        out["image"] = cv2.resize(
            example["image"][window], (width, height), interpolation=cv2.INTER_AREA
        )
        for task in self.tasks:
            out[task.name] = example[task.name][window]
        return out


@dataclasses.dataclass(frozen=True)
class RandomFlip(Transform):
    """Mirrors left to right with the given probability; horizontal components change sign."""

    tasks: tuple[Task, ...]
    probability: float

    def _apply(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= self.probability:
            return example
        out = dict(example)
        out["image"] = cv2.flip(example["image"], 1)
        for task in self.tasks:
            label = cv2.flip(example[task.name], 1).reshape(example[task.name].shape)
            if task.negate_x_on_flip:
                negate_x(label, task.ignore)
            out[task.name] = label
        return out


@dataclasses.dataclass(frozen=True)
class ColourJitter(Transform):
    """Changes the colours of a uint8 RGB image: the single-shot detector's photometric distortion.

    Brightness, contrast, saturation and hue, each with `probability`, in this order; contrast
    comes last instead with probability 0.5. The values are clipped to 0..255 after each, and
    hue wraps around. Fields are those of `AugmentSettings`.
    """

    brightness: float
    contrast: tuple[float, float]
    saturation: tuple[float, float]
    hue: int
    probability: float

    def _apply(self, example: Example, rng: np.random.Generator) -> Example:
        chosen = rng.random(4) < self.probability
        contrast_first = rng.random() < 0.5
        shift = rng.uniform(-self.brightness, self.brightness) * chosen[0]
        contrast = rng.uniform(*self.contrast) if chosen[1] else 1.0
        saturation = rng.uniform(*self.saturation) if chosen[2] else 1.0
        turn = int(rng.integers(-self.hue, self.hue + 1)) * int(chosen[3])

        levels = np.arange(256, dtype=np.float32)
        before = _to_uint8(levels + shift)
        if contrast_first:
            before = _to_uint8(before * contrast)
        image = cv2.LUT(example["image"], before)
        if chosen[2] or chosen[3]:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            table = np.stack(
                [(levels + turn) % 180, _to_uint8(levels * saturation), levels], axis=-1
            )
            hsv = cv2.LUT(hsv, table[None].astype(np.uint8))
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if not contrast_first and chosen[1]:
            image = cv2.LUT(image, _to_uint8(levels * contrast))
        return {**example, "image": image}


def _to_uint8(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class IgnoreUnannotated(Transform):
    """Makes all of a label ignore where it holds only background, `Task.ignore_all_background`.

    As in the official code this is asked of the crop, so a person's surroundings do not count.
    """

    tasks: tuple[Task, ...]

    def _apply(self, example: Example, rng: np.random.Generator) -> Example:
        out = dict(example)
        for task in self.tasks:
            label = example[task.name]
            if not task.ignore_all_background:
                continue
            if np.count_nonzero(label) == np.count_nonzero(label == task.ignore):
                out[task.name] = np.full_like(label, task.ignore)
        return out


def normalise(levels: np.ndarray) -> np.ndarray:
    """Returns float32 RGB levels [... 3] of 0 to 255, normalised; a JAX array gives one."""
    return (levels / 255 - MEAN) / STD


# Of every uint8 value: exact, and faster than arithmetic on pixels.
_NORMALISED = normalise(np.arange(256, dtype=np.float32)[:, None])[None]


@dataclasses.dataclass(frozen=True)
class NormaliseAndPad(Transform):
    """Normalises the uint8 RGB image with ImageNet's mean and deviation; centres all in `size`.

    Labels, `label_scale` times as high and wide, get that many times the padding on each side. The
    normalised image is filled with 0, the mean colour; labels with their ignore value. Adds `size`:
    the image's height and width without the padding.

    Raises:
      ValueError: the image is larger than `size`.
    """

    tasks: tuple[Task, ...]
    size: tuple[int, int]
    label_scale: int = 1

    def empty(self, *leading: int) -> dict[str, np.ndarray]:
        """Returns uninitialised arrays for what `write` writes, with leading axes."""
        arrays = {
            "image": np.empty((*leading, *self.size, 3), np.float32),
            "size": np.empty((*leading, 2), np.int32),
        }
        size = [n * self.label_scale for n in self.size]
        for task in self.tasks:
            shape = (*leading, *size, task.label_channels)
            arrays[task.name] = np.empty(shape, task.label_dtype)
        return arrays

    def write(self, example: Example, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes image, size and labels, for instance into their place in a batch."""
        height, width = example["image"].shape[:2]
        if height > self.size[0] or width > self.size[1]:
            raise ValueError(
                f"the image is {height}x{width} (height x width), larger than the input size "
                f"{self.size[0]}x{self.size[1]}. Give one that holds every image, as "
                f"--config.data.size={height},{width} does this one, or shrink images and labels."
            )
        arrays["size"][:] = height, width
        offset = pad_offset((height, width), self.size)
        inside = frame(arrays["image"], offset, (height, width), 0)
        cv2.LUT(example["image"], _NORMALISED, inside)
        offset = [n * self.label_scale for n in offset]
        for task in self.tasks:
            label = example[task.name]
            frame(arrays[task.name], offset, label.shape, task.ignore)[:] = label

    def _apply(self, example: Example, rng: np.random.Generator) -> Example:
        arrays = self.empty()
        self.write(example, arrays)
        return {**example, **arrays}


def train_transforms(
    tasks: Sequence[Task],
    crop_size: tuple[int, int],
    augment: AugmentSettings,
    label_scale: int = 1,
) -> tuple[Transform, ...]:
    """Returns the training transforms.

    Args:
      tasks: whose labels examples hold.
      crop_size: height and width of the images that come out.
      augment: how strongly they are varied.
      label_scale: labels come out this many times as high and wide.
    """
    tasks = tuple(tasks)
    window = (crop_size[0] * label_scale, crop_size[1] * label_scale)
    return (
        RandomZoomCrop(tasks, *augment.scale, window, augment.crop_tries, augment.max_class_share),
        *_shrink(tasks, label_scale),
        RandomFlip(tasks, augment.flip_probability),
        ColourJitter(
            augment.brightness,
            augment.contrast,
            augment.saturation,
            augment.hue,
            augment.jitter_probability,
        ),
        IgnoreUnannotated(tasks),
        NormaliseAndPad(tasks, crop_size, label_scale),
    )


def eval_transforms(
    tasks: Sequence[Task], size: tuple[int, int], label_scale: int = 1
) -> tuple[Transform, ...]:
    """Returns the evaluation transforms, nothing random; arguments are as in `train_transforms`."""
    tasks = tuple(tasks)
    return (
        *_shrink(tasks, label_scale),
        IgnoreUnannotated(tasks),
        NormaliseAndPad(tasks, size, label_scale),
    )


def _shrink(tasks: tuple[Task, ...], factor: int) -> tuple[Transform, ...]:
    return (Shrink(tasks, factor),) if factor > 1 else ()
