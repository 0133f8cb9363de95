"""Transforms of one example: augmentation for training; normalising and padding for evaluation.

Examples are those of `batch.py`. Image and labels have the same size up to `Shrink`, which leaves
the labels on a finer grid, and the image is uint8 up to `NormaliseAndPad`, which comes last. How a
label is transformed follows from its row of the task table. The recipe is that of the official
MTMamba code.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Float, Num

from mtmamba_jax.array_types import Array
from mtmamba_jax.data_pipelines import pixels
from mtmamba_jax.data_pipelines.batch import MEAN, STD, Example, pad_offset
from mtmamba_jax.tasks.table import Task


class Transform(abc.ABC):
    """A function of one example; whatever it draws at random comes from the rng it is given."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns the transformed example; the given one and its arrays are not modified."""
        return self._apply(example, rng)

    @abc.abstractmethod
    def _apply(self, example: Example, rng: np.random.Generator) -> Example: ...


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """How strongly training images are augmented; the defaults are the published recipe.

    `configs/common.py` declares the valid values.

    Attributes:
      scale: Range of the random zoom factor.
      max_class_share: Largest share of a crop that one class may cover; other crops are drawn
        again.
      crop_tries: Largest number of crops to draw; the last one is used in any case.
      flip_probability: Probability of mirroring left to right.
      brightness: Largest shift of the values, in levels of 0..255.
      contrast: Range of the factor on the values.
      saturation: Range of the factor on the HSV saturation.
      hue: Largest shift of the hue, in OpenCV's 8-bit units of 2 degrees (18 is 36 degrees).
      jitter_probability: Probability of each of the four colour changes.
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


@dataclasses.dataclass(frozen=True)
class RandomZoomCrop(Transform):
    """Zooms by a random factor s, and crops to `size`, or less where the image is smaller.

    The image is zoomed bilinearly, labels with nearest-neighbour sampling; only the crop is
    computed. A surface twice as large in the image is taken to be half as far away: distances
    become d / s, as `Task.scale_power` says.

    Of up to `crop_tries` crops, uses the first whose largest class covers at most
    `max_class_share` of the valid pixels, else the last. This counts the first task with
    `Task.limits_crops`; without one, every crop is accepted.
    """

    tasks: tuple[Task, ...]
    size: tuple[int, int]
    settings: AugmentSettings

    def _apply(self, example: Example, rng: np.random.Generator) -> Example:
        scale = rng.uniform(*self.settings.scale)
        height, width, _ = example["image"].shape
        zoomed = (max(1, round(height * scale)), max(1, round(width * scale)))
        window = self._draw_window(example, zoomed, rng)
        out = dict(example)
        out["image"] = pixels.zoom_image(example["image"], zoomed, window)
        for task in self.tasks:
            out[task.name] = pixels.zoom_label(example[task.name], zoomed, window)
            if task.scale_power:
                pixels.multiply(out[task.name], scale**task.scale_power, task.ignore)
        return out

    def _draw_window(
        self, example: Example, zoomed: tuple[int, int], rng: np.random.Generator
    ) -> pixels.Window:
        height, width = (min(n, m) for n, m in zip(zoomed, self.size, strict=True))

        def draw() -> pixels.Window:
            top = int(rng.integers(zoomed[0] - height + 1))
            left = int(rng.integers(zoomed[1] - width + 1))
            return slice(top, top + height), slice(left, left + width)

        task = next((task for task in self.tasks if task.limits_crops), None)
        if not task or (height, width) == zoomed:
            return draw()
        # Class IDs and the ignore value fit in the 8 bits that OpenCV's histograms take.
        classes = example[task.name].astype(np.uint8)
        label_in = pixels.label_windows(classes, zoomed, (height, width))
        for _ in range(self.settings.crop_tries):
            window = draw()
            counts = cv2.calcHist([label_in(window)], [0], None, [256], [0, 256])
            counts[task.ignore] = 0
            if 0 < counts.max() <= self.settings.max_class_share * counts.sum():
                break
        return window


@dataclasses.dataclass(frozen=True)
class Shrink(Transform):
    """Downsamples the uint8 image by `factor`; each pixel is the mean of factor x factor pixels.

    Labels keep their resolution. Image and labels lose the rows and columns beyond a multiple of
    `factor`, so that labels are exactly `factor` times as high and wide.

    Raises:
      ValueError: If the image has fewer rows or columns than `factor`.
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
        image = cv2.resize(example["image"][window], (width, height), interpolation=cv2.INTER_AREA)
        labels = {task.name: example[task.name][window] for task in self.tasks}
        return {**example, "image": image, **labels}


@dataclasses.dataclass(frozen=True)
class RandomFlip(Transform):
    """Mirrors left to right with the given probability and negates horizontal components."""

    tasks: tuple[Task, ...]
    probability: float

    def _apply(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= self.probability:
            return example
        out = {**example, "image": cv2.flip(example["image"], 1)}
        for task in self.tasks:
            label = cv2.flip(example[task.name], 1).reshape(example[task.name].shape)
            if task.negate_x_on_flip:
                pixels.negate_x(label, task.ignore)
            out[task.name] = label
        return out


@dataclasses.dataclass(frozen=True)
class ColourJitter(Transform):
    """Changes the colours of a uint8 RGB image: SSD's photometric distortion (Liu et al., 2016).

    Brightness, contrast, saturation and hue are changed with `jitter_probability` each, in this
    order; with probability 0.5 contrast comes last instead. Values are clipped to 0..255 after
    each change, and hue wraps around.
    """

    settings: AugmentSettings

    def _apply(self, example: Example, rng: np.random.Generator) -> Example:
        limits = self.settings
        chosen = rng.random(4) < limits.jitter_probability
        contrast_first = rng.random() < 0.5
        shift = rng.uniform(-limits.brightness, limits.brightness) * chosen[0]
        contrast = rng.uniform(*limits.contrast) if chosen[1] else 1.0
        saturation = rng.uniform(*limits.saturation) if chosen[2] else 1.0
        hue_shift = int(rng.integers(-limits.hue, limits.hue + 1)) * int(chosen[3])

        levels = np.arange(256, dtype=np.float32)
        first = _to_uint8(levels + shift)
        if contrast_first:
            first = _to_uint8(first * contrast)
        image = cv2.LUT(example["image"], first)
        if chosen[2] or chosen[3]:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            channels = [(levels + hue_shift) % 180, _to_uint8(levels * saturation), levels]
            hsv = cv2.LUT(hsv, np.stack(channels, axis=-1)[None].astype(np.uint8))
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if not contrast_first and chosen[1]:
            image = cv2.LUT(image, _to_uint8(levels * contrast))
        return {**example, "image": image}


def _to_uint8(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class IgnoreUnannotated(Transform):
    """Ignores labels that contain only background, for tasks with `Task.ignore_all_background`.

    As in the official code this is decided on the crop, so crops beside a person do not count.
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


def normalise(levels: Num[Array, "*b 3"]) -> Float[Array, "*b 3"]:
    """Returns RGB levels in 0..255 normalised with ImageNet's statistics; also takes JAX arrays."""
    return (levels / 255 - MEAN) / STD


# A table of all uint8 values: exact, and faster than arithmetic on pixels.
_NORMALISED = np.asarray(normalise(np.arange(256, dtype=np.float32)[:, None]))[None]


@dataclasses.dataclass(frozen=True)
class NormaliseAndPad(Transform):
    """Normalises the uint8 RGB image with ImageNet's statistics, and pads image and labels.

    The image is centred in `size`. Labels, `label_scale` times as high and wide, get that many
    times the padding on each side. The image's padding is 0, the mean colour; that of labels is
    their ignore value. Adds `size`, the image's height and width without the padding.

    Raises:
      ValueError: If the image is larger than `size`.
    """

    tasks: tuple[Task, ...]
    size: tuple[int, int]
    label_scale: int = 1

    def empty(self, *leading: int) -> dict[str, np.ndarray]:
        """Returns uninitialised arrays for `write`, with the given leading axes."""
        size = [n * self.label_scale for n in self.size]
        return {
            "image": np.empty((*leading, *self.size, 3), np.float32),
            "size": np.empty((*leading, 2), np.int32),
        } | {
            task.name: np.empty((*leading, *size, task.label_channels), task.label_dtype)
            for task in self.tasks
        }

    def write(self, example: Example, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes image, size and labels into `arrays`, such as one example's slices of a batch."""
        height, width = example["image"].shape[:2]
        if height > self.size[0] or width > self.size[1]:
            raise ValueError(
                f"the image is {height}x{width} (height x width), larger than the input size "
                f"{self.size[0]}x{self.size[1]}. Set --config.data.size to the size of your "
                f"largest image (this one needs {height},{width}), or shrink the images and their "
                "labels."
            )
        arrays["size"][:] = height, width
        offset = pad_offset((height, width), self.size)
        inside = pixels.fill_border(arrays["image"], offset, (height, width), 0)
        cv2.LUT(example["image"], _NORMALISED, inside)
        offset = [n * self.label_scale for n in offset]
        for task in self.tasks:
            label = example[task.name]
            pixels.fill_border(arrays[task.name], offset, label.shape[:2], task.ignore)[:] = label

    def _apply(self, example: Example, rng: np.random.Generator) -> Example:
        arrays = self.empty()
        self.write(example, arrays)
        return {**example, **arrays}


def train_transforms(
    tasks: Sequence[Task],
    crop_size: tuple[int, int],
    augment: AugmentSettings,
    label_scale: int = 1,
) -> tuple[*tuple[Transform, ...], NormaliseAndPad]:
    """Returns the training transforms.

    Images have `crop_size` (height, width) pixels, labels `label_scale` times as many per axis.
    """
    tasks = tuple(tasks)
    window = (crop_size[0] * label_scale, crop_size[1] * label_scale)
    return (
        RandomZoomCrop(tasks, window, augment),
        *_shrink(tasks, label_scale),
        RandomFlip(tasks, augment.flip_probability),
        ColourJitter(augment),
        IgnoreUnannotated(tasks),
        NormaliseAndPad(tasks, crop_size, label_scale),
    )


def eval_transforms(
    tasks: Sequence[Task], size: tuple[int, int], label_scale: int = 1
) -> tuple[*tuple[Transform, ...], NormaliseAndPad]:
    """Returns the evaluation transforms, which are deterministic.

    Images are padded to `size` (height, width) pixels, labels to `label_scale` times that.
    """
    tasks = tuple(tasks)
    return (
        *_shrink(tasks, label_scale),
        IgnoreUnannotated(tasks),
        NormaliseAndPad(tasks, size, label_scale),
    )


def _shrink(tasks: tuple[Task, ...], factor: int) -> tuple[Shrink, ...]:
    return (Shrink(tasks, factor),) if factor > 1 else ()
