"""The batch contract: what the input pipeline yields and the rest of the code may rely on.

A raw example, as a data source returns it, before any transform:

| key         | dtype, shape                        | meaning                               |
|-------------|-------------------------------------|---------------------------------------|
| image       | uint8 [h w 3]                       | RGB                                   |
| <task name> | [h w c], dtype as in the batch      | one label for each task of the set    |
| id          | str                                 | identifies the example in messages    |
|             |                                     | and file names                        |

A batch, on the host, after the transforms, where s is the label scale (`config.data.label_scale`):

| key         | dtype, shape                        | meaning                               |
|-------------|-------------------------------------|---------------------------------------|
| images      | float32 [b h w 3]                   | RGB, ImageNet mean 0 and deviation 1  |
| class tasks | int32 [b h*s w*s 1]                 | class ID, 255 ignore                  |
| depth       | float32 [b h*s w*s 1]               | metres or pixels (the task's unit),   |
|             |                                     | 255 ignore; your own data: -255       |
| normals     | float32 [b h*s w*s 3]               | unit vectors, ignored where all three |
|             |                                     | channels are 255                      |
| id          | str [b]                             | IDs of the examples                   |
| size        | int32 [b 2]                         | height and width without the padding  |
| mask        | bool [b]                            | False for repeats that fill the batch |

Normals are in the camera's frame: x right, y up, z towards the camera. Padding is centred; an odd
pixel goes to the bottom or the right (`pad_offset`); labels have s times the image's padding. A
label's channels, dtype and ignore value come from its row of the task table.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from mtmamba_jax.tasks.table import Task

Example = dict[str, Any]
"""A raw example, or one on its way through the transforms."""

# ImageNet's statistics of RGB values in 0..1, as all published Swin weights expect them.
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)


def denormalise(images: Float[np.ndarray, "*b h w 3"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """Returns normalised images as RGB; padding becomes the mean colour."""
    rgb = (np.asarray(images, np.float32) * STD + MEAN) * 255
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def pad_offset(size: Sequence[int], padded: Sequence[int]) -> tuple[int, int]:
    """Returns (top, left) of an image of `size` = (height, width), centred in `padded`."""
    return (int(padded[0]) - int(size[0])) // 2, (int(padded[1]) - int(size[1])) // 2


def remove_padding(
    image: Shaped[np.ndarray, "h w ..."], size: Sequence[int], scale: int = 1
) -> Shaped[np.ndarray, "h2 w2 ..."]:
    """Returns the part of a padded image, label or prediction that holds the image.

    Args:
      size: Height and width of the image without padding, in image pixels.
      scale: Pixels of the map per image pixel: 1 for images, s for labels and for predictions on
        their grid.
    """
    offset = pad_offset(size, [n // scale for n in image.shape[:2]])
    top, left, height, width = (int(n) * scale for n in (*offset, *size))
    return image[top : top + height, left : left + width]


def check_example(example: Mapping[str, Any], tasks: Sequence[Task]) -> None:
    """Checks a raw example's keys, shapes and dtypes against the contract above.

    Raises:
      ValueError: If the example breaks the contract. The message names the key, and what was wanted
        and what was found.
    """
    shape = np.shape(_entry(example, "image"))
    if len(shape) != 3:
        raise ValueError(f"example['image']: wanted shape [h w 3], got {list(shape)}.")
    height, width, _ = shape
    wanted = {"image": ((height, width, 3), "uint8")}
    wanted |= {t.name: ((height, width, t.label_channels), t.label_dtype) for t in tasks}
    for key, (shape, dtype) in wanted.items():
        value = _entry(example, key)
        found = (tuple(value.shape), str(value.dtype)) if hasattr(value, "dtype") else None
        if found != (shape, dtype):
            came = f"{found[1]} {list(found[0])}" if found else type(value).__name__
            raise ValueError(f"example[{key!r}]: wanted {dtype} {list(shape)}, got {came}.")
    if not isinstance(_entry(example, "id"), str):
        raise ValueError(f"example['id']: wanted a str, got {type(example['id']).__name__}.")


def _entry(example: Mapping[str, Any], key: str) -> Any:
    if key not in example:
        raise ValueError(f"example has no key {key!r}; it has {', '.join(map(repr, example))}.")
    return example[key]
