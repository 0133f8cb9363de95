"""Reading the files of a dataset, each with its checks: what is wrong is named with its remedy."""

from __future__ import annotations

import io
import pathlib
import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mtmamba_jax.tasks import IGNORE

AGAIN = "Extract or copy it again from its source."
"""The remedy where a file is damaged."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF_ORIENTATION = 0x0112


class DataError(ValueError):
    """A dataset's file is missing, unreadable or not what it should be; the message names it."""


def read_bytes(path: pathlib.Path) -> bytes:
    """Returns a file's contents.

    Raises:
      DataError: it is missing, empty, or cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing. {AGAIN}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). {AGAIN}") from error
    if not data:
        raise DataError(f"{path} is empty. {AGAIN}")
    return data


def decode_image(data: bytes, path: pathlib.Path) -> Image.Image:
    """Returns a decoded PNG or JPEG.

    Args:
      data: the file's contents.
      path: for messages.

    Raises:
      DataError: no image, or a damaged one.
    """
    if data.startswith(_PNG_SIGNATURE):
        _check_png(data, path)
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        image.load()
    except UnidentifiedImageError:
        start = data.lstrip()[:20].lower()
        what = "an HTML page" if start.startswith((b"<!doctype", b"<html")) else "no PNG or JPEG"
        raise DataError(f"{path} is {what}. {AGAIN}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}). {AGAIN}") from error
    return image


def _check_png(data: bytes, path: pathlib.Path) -> None:
    """Checks every chunk's checksum, which image libraries leave out."""
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(data[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise DataError(f"{path} is damaged (wrong checksum). {AGAIN}")
        if kind == b"IEND":
            return
        position = end + 4
    raise DataError(f"{path} is cut off after {len(data)} bytes. {AGAIN}")


def read_rgb(path: pathlib.Path, size: Sequence[int] | None = None) -> np.ndarray:
    """Returns a colour image, uint8 [h w 3], RGB.

    Args:
      path: PNG or JPEG.
      size: height and width that it must have; None takes any.

    Raises:
      DataError: unreadable, not 8-bit RGB, to be shown turned, or of another size.
    """
    image = decode_image(read_bytes(path), path)
    if image.mode != "RGB":
        raise DataError(f"{path} is of mode {image.mode}, wanted 8-bit RGB. Save it as RGB.")
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        raise DataError(
            f"{path} is stored turned (EXIF orientation), so labels may not lie on it. "
            "Save it upright, without EXIF data."
        )
    return check_size(np.asarray(image), size, path)


def read_photo(path: pathlib.Path) -> np.ndarray:
    """Returns a published photo, uint8 [h w 3], RGB: the pixels as stored, grey ones as RGB.

    Labels were made for the pixels as stored, whatever EXIF data says.

    Raises:
      DataError: unreadable, or neither grey nor RGB.
    """
    image = decode_image(read_bytes(path), path)
    if image.mode not in ("RGB", "L"):
        raise DataError(f"{path} is of mode {image.mode}, wanted 8-bit RGB. {AGAIN}")
    return np.asarray(image.convert("RGB"))


def read_grey(path: pathlib.Path, size: Sequence[int] | None = None) -> np.ndarray:
    """Returns a map of one channel, uint8 or uint16 [h w]: grey levels, or a palette's indices.

    A file of 1 bit gives 0 and 1.

    Raises:
      DataError: unreadable, of several channels, or of another size.
    """
    image = decode_image(read_bytes(path), path)
    if image.mode not in ("L", "P", "I;16", "1"):
        raise DataError(
            f"{path} is of mode {image.mode}, wanted one channel of 8 or 16 bits. "
            "Save the numbers themselves, not colours."
        )
    values = np.asarray(image)
    return check_size(values.astype(np.uint8) if values.dtype == bool else values, size, path)


def read_depth(path: pathlib.Path, size: Sequence[int] | None) -> np.ndarray:
    """Returns distances in metres from .npy, float32 [h w 1]; 0, not measured, becomes ignore.

    Raises:
      DataError: unreadable, no floats [h w], NaN, infinite or negative, or of another size.
    """
    try:
        depth = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except DataError:
        raise
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is no readable .npy array ({error}). {AGAIN}") from error
    if not isinstance(depth, np.ndarray) or depth.dtype.kind not in "fiu":
        raise DataError(f"{path} holds no array of real numbers. Save metres as float32 [h w].")
    if depth.dtype.kind != "f":
        raise DataError(
            f"{path} holds whole numbers ({depth.dtype}): are they millimetres? Save metres as "
            "float32 [h w]."
        )
    if depth.ndim == 3 and depth.shape[-1] == 1:
        depth = depth[..., 0]
    if depth.ndim != 2:
        shape = "x".join(map(str, depth.shape))
        raise DataError(f"{path} is {shape}, wanted [h w]. Save one distance for each pixel.")
    check_size(depth, size, path)
    bad = ~np.isfinite(depth) | (depth < 0)
    if bad.any():
        raise DataError(
            f"{path} has {bad.sum()} values that are NaN, infinite or negative. Depth is in "
            "metres; write 0 where there is none."
        )
    depth = depth.astype(np.float32)[..., None]
    return np.where(depth == 0, np.float32(IGNORE), depth)


def read_normals(path: pathlib.Path, size: Sequence[int] | None) -> np.ndarray:
    """Returns normals from an RGB picture, 2 * v / 255 - 1, float32 [h w 3].

    Raises:
      DataError: as `read_rgb`.
    """
    return cv2.LUT(read_rgb(path, size), NORMALS_OF_LEVELS)


NORMALS_OF_LEVELS = 2 * np.arange(256, dtype=np.float32) / 255 - 1
"""Component of a normal for each 8-bit level."""


def read_mat(path: pathlib.Path, key: str) -> np.ndarray:
    """Returns the variable `key` of a MATLAB file.

    Raises:
      DataError: unreadable, or without it.
    """
    import scipy.io  # with the extra "data" only

    try:
        variables = scipy.io.loadmat(io.BytesIO(read_bytes(path)))
    except DataError:
        raise
    except Exception as error:  # scipy raises half a dozen kinds for damaged files
        raise DataError(f"{path} is no readable MATLAB file ({error}). {AGAIN}") from error
    if key not in variables:
        raise DataError(f"{path} holds no variable {key!r}. {AGAIN}")
    return variables[key]


def read_list(path: pathlib.Path) -> tuple[str, ...]:
    """Returns the names in a text file, one a line.

    Raises:
      DataError: unreadable, without a name, with one twice, or with one that leaves its folder.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")  # editors of Windows put a mark before it
        names = [line.strip() for line in text.splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text file. {AGAIN}") from None
    if not names:
        raise DataError(f"{path} names no image. {AGAIN}")
    seen = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path} names {name!r} twice. Remove one of the lines.")
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise DataError(f"{path} names {name!r}, which is no plain name. {AGAIN}")
        seen.add(name)
    return tuple(names)


def check_size(array: np.ndarray, size: Sequence[int] | None, path: pathlib.Path) -> np.ndarray:
    """Returns the array, whose first two axes must be `size`, the image's height and width.

    Raises:
      DataError: they are not.
    """
    found = array.shape[:2]
    if size is not None and found != tuple(size):
        shape = "x".join(map(str, found))
        raise DataError(
            f"{path} is {shape} (height x width), its image {size[0]}x{size[1]}. Both must be of "
            "one size: is it of another image, or another version of the dataset?"
        )
    return array


def to_class_ids(
    table: np.ndarray, values: np.ndarray, path: pathlib.Path, wanted: str
) -> np.ndarray:
    """Returns classes, int32 [h w 1], for a file's values.

    Args:
      table: class, or the ignore value, for each value; -1 for those that must not occur.
      values: [h w].
      path: for messages.
      wanted: the allowed values, in words.

    Raises:
      DataError: another value occurs.
    """
    padded = np.full(max(len(table), int(values.max()) + 1), -1, np.int32)
    padded[: len(table)] = table
    label = padded[values]
    if label.min() < 0:
        bad = np.unique(values[label < 0])
        raise DataError(
            f"{path} holds {_some(bad)}; wanted {wanted}. Is it the right kind of label?"
        )
    return label[..., None]


def _some(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:5]))
    return (
        f"the value {shown}"
        if len(values) == 1
        else f"the values {shown}" + (", ..." if len(values) > 5 else "")
    )


def class_id_table(number: int) -> np.ndarray:
    """Returns the table of `class_label` for files that hold classes 0 to number - 1 and 255."""
    table = np.full(256, -1, np.int32)
    table[:number] = np.arange(number)
    table[IGNORE] = IGNORE
    return table
