"""Reads and checks single files of a dataset.

Every function raises `DataError` for a file that is missing, damaged or not as its docstring says.
"""

import codecs
import io
import os
import pathlib
import re
import shlex
import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float32, Int32, Integer, Shaped, UInt8, UInt16
from PIL import Image, UnidentifiedImageError

from mtmamba_jax.messages import first_line, shortened
from mtmamba_jax.tasks.table import IGNORE

COPY_AGAIN = "Extract or copy it again from its source."
"""The remedy for a damaged file."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_BIT_DEPTH = 24  # position of the byte with the bits per channel
_EXIF_ORIENTATION = 0x0112
_TURN = (
    "python -c 'import pathlib; from PIL import Image, ImageOps; [ImageOps.exif_transpose(i)"
    '.save(p, quality=95) for p in pathlib.Path().rglob("*") if p.suffix.lower() in (".jpg", '
    f'".jpeg", ".png") and (i := Image.open(p)).getexif().get({_EXIF_ORIENTATION}, 1) != 1]\''
)
_FARTHEST = 1e9  # metres; sums of squares stay finite in float32, unlike those of "no hit" markers


Size = Sequence[int] | None
"""Height and width that an image or a label must have; None accepts any size."""


class DataError(ValueError):
    """A file is missing, unreadable or wrong; the message names it, the problem and the remedy."""


def read_bytes(path: pathlib.Path, remedy: str = COPY_AGAIN) -> bytes:
    """Returns the contents of a file; `remedy` is what to do if it is missing, empty or no file."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for its writer
            raise DataError(f"{path} is not a file. {remedy}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing. {remedy}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). {remedy}") from error
    if not data:
        raise DataError(f"{path} is empty. {remedy}")
    return data


def is_web_page(data: bytes) -> bool:
    """Returns True if a file with this beginning is what a server sends instead of the file."""
    return data[:64].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml"))


def decode_image(data: bytes, path: pathlib.Path) -> Image.Image:
    """Decodes a PNG or JPEG; `path` is the file's, for messages."""
    if data.startswith(_PNG_SIGNATURE):
        _check_png(data, path)
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        image.load()
    except UnidentifiedImageError:
        what = "a web page" if is_web_page(data) else "not a PNG or JPEG"
        raise DataError(f"{path} is {what}. {COPY_AGAIN}") from None
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} is too large to be read ({error}). Shrink it, and with it its labels or its "
            "image."
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{path} does not fit into memory. Shrink it, or use fewer workers."
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}). {COPY_AGAIN}") from error
    return image


def _decode_colours(data: bytes, path: pathlib.Path) -> Image.Image:
    """Decodes a PNG or JPEG of colours, which must not lose its brightness in 8 bits."""
    image = decode_image(data, path)
    # Of 16 bits in three channels Pillow returns the upper 8, which sensors' data leave empty.
    if image.format == "PNG" and image.mode == "RGB" and data[_PNG_BIT_DEPTH] == 16:
        levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if levels is not None and levels.any() and (bits := used_bits(levels)) < 16:
            raise DataError(
                f"{path} has 16 bits per channel, but 99.9 % of its values fit in {bits}: it would "
                f"be nearly black. Save it with 8 bits: values // {2 ** (bits - 8)} if it holds "
                f"{bits}-bit data, values // 256 if it is a dark image of 16 bits."
            )
    return image


def used_bits(levels: UInt16[np.ndarray, "..."]) -> int:
    """Returns how many bits of a 16-bit image hold its data, if that came from a usual sensor."""
    return next(bits for bits in (8, 10, 12, 14, 16) if fits(levels, bits))


def fits(levels: UInt16[np.ndarray, "..."], bits: int) -> bool:
    """Returns whether at most 0.1 % of the values, which may be hot pixels, need more bits."""
    return int(np.count_nonzero(levels > 2**bits - 1)) <= levels.size // 1000


def _check_png(data: bytes, path: pathlib.Path) -> None:
    """Checks the checksum of every chunk, which image libraries do not."""
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(data[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise DataError(f"{path} is damaged (wrong checksum). {COPY_AGAIN}")
        if kind == b"IEND":
            return
        position = end + 4
    raise DataError(f"{path} is cut off after {len(data)} bytes. {COPY_AGAIN}")


def read_rgb(path: pathlib.Path, size: Size = None) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an 8-bit RGB image, a PNG or JPEG without an EXIF orientation that rotates it."""
    image = _decode_colours(read_bytes(path), path)
    if image.mode != "RGB":
        raise DataError(f"{path} has mode {image.mode}, expected 8-bit RGB. Save it as RGB.")
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        raise DataError(
            f"{path} is stored turned (EXIF orientation), so its labels may be of the picture as "
            "stored or as shown. If as shown, turn the images of that folder, after a copy of it:"
            f"\n  cd {shlex.quote(os.fspath(path.parent))} && {_TURN}\n"
            "If as stored, save the images without EXIF data."
        )
    return check_size(np.asarray(image), size, path)


def read_published_photo(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a published photo as RGB; grey photos are converted.

    The EXIF orientation is ignored, because the labels were made for the pixels as stored.
    """
    image = _decode_colours(read_bytes(path), path)
    if image.mode not in ("RGB", "L"):
        raise DataError(f"{path} has mode {image.mode}, expected 8-bit RGB. {COPY_AGAIN}")
    return np.asarray(image.convert("RGB"))


def read_grey(path: pathlib.Path, size: Size = None) -> Integer[np.ndarray, "h w"]:
    """Reads the values of a one-channel image as uint8 or uint16; they may be palette indices."""
    data = read_bytes(path)
    image = decode_image(data, path)
    if image.format == "JPEG":
        raise DataError(f"{path} is a JPEG, which changes values. Save it as PNG from its source.")
    if image.mode not in ("L", "P", "I;16", "1"):
        raise DataError(
            f"{path} has mode {image.mode}, expected one channel of 8 or 16 bits. Save the values "
            "themselves, not colours."
        )
    values = np.asarray(image)
    if image.mode == "L":  # Pillow scales grey levels of fewer bits to 0..255
        values = values // (255 // (2 ** data[_PNG_BIT_DEPTH] - 1))
    return check_size(values.astype(np.uint8) if values.dtype == bool else values, size, path)


def read_depth(
    path: pathlib.Path, size: Size, ignore: int = IGNORE
) -> Float32[np.ndarray, "h w 1"]:
    """Reads depth in metres from a .npy file; 0 (not measured) becomes the ignore value.

    Raises:
      DataError: If it does not hold floats [h w] or has values that are no distances, that
        float32 cannot hold, or that equal the ignore value.
    """
    data = read_bytes(path)
    try:
        depth = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # any type: NumPy parses headers with Python's tokenizer
        raise DataError(
            f"{path} is not a readable .npy array ({first_line(error)}). {COPY_AGAIN}"
        ) from error
    if not isinstance(depth, np.ndarray) or depth.dtype.kind not in "fiu":
        raise DataError(f"{path} is not an array of real numbers. Save metres as float32 [h w].")
    if depth.dtype.kind != "f":
        raise DataError(
            f"{path} holds integers ({depth.dtype}): are they millimetres? Save metres as "
            "float32 [h w]."
        )
    if depth.ndim == 3 and depth.shape[-1] == 1:
        depth = depth[..., 0]
    if depth.ndim != 2:
        shape = "x".join(map(str, depth.shape))
        raise DataError(f"{path} has shape {shape}, expected [h w]. Save one distance per pixel.")
    check_size(depth, size, path)
    if depth.dtype.itemsize < 4:  # float16 cannot hold _FARTHEST
        depth = depth.astype(np.float32)
    bad = ~((depth >= 0) & (depth <= _FARTHEST))  # NaN too
    if bad.any():
        raise DataError(
            f"{path} has {bad.sum()} values that are NaN, infinite or negative, or over "
            f"{_FARTHEST:g}. Depth is in metres; write 0 where it was not measured."
        )
    metres = depth.astype(np.float32)
    for wrong, value in (((metres == 0) & (depth != 0), 0), (metres == ignore, ignore)):
        if wrong.any():
            raise DataError(
                f"{path} has {wrong.sum()} values that are {value} in float32, which here means "
                f"not measured. Write {value + 0.001} there."
            )
    return np.where(metres == 0, np.float32(ignore), metres)[..., None]


NORMAL_OF_LEVEL = 2 * np.arange(256, dtype=np.float32) / 255 - 1
"""Component of a normal for each 8-bit level."""


def read_normals(path: pathlib.Path, size: Size) -> Float32[np.ndarray, "h w 3"]:
    """Reads surface normals, 2 * v / 255 - 1, from an RGB image."""
    return cv2.LUT(read_rgb(path, size), NORMAL_OF_LEVEL)


def read_mat(path: pathlib.Path, key: str) -> np.ndarray:
    """Returns the variable `key` of a MATLAB file."""
    import scipy.io  # slow to import

    try:
        variables = scipy.io.loadmat(io.BytesIO(read_bytes(path)))
    except DataError:
        raise
    except Exception as error:  # for damaged files SciPy raises half a dozen types
        raise DataError(f"{path} is not a readable MATLAB file ({error}). {COPY_AGAIN}") from error
    if key not in variables:
        raise DataError(f"{path} has no variable {key!r}. {COPY_AGAIN}")
    return variables[key]


def read_list(
    path: pathlib.Path, remedy: str = "Write one name per line.", allow_empty: bool = False
) -> tuple[str, ...]:
    """Reads a text file of names, one per line, without repeats or names that leave the folder.

    The file is UTF-8, or UTF-16 with a byte order mark, which Windows tools write. `remedy` is what
    to do about a file that is no such list.
    """
    if allow_empty and path.is_file() and not path.stat().st_size:
        return ()
    data = read_bytes(path, remedy)
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{path} is not UTF-8 text. Save it as UTF-8. {remedy}")
    # Not splitlines(): file names may hold what it splits at besides, and strip() removes.
    lines = (line.strip(" \t") for line in re.split(r"\r\n|\r|\n", text))
    names = [line for line in lines if line]
    if not names and not allow_empty:
        raise DataError(f"{path} names no image. {remedy}")
    seen = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path} names {name!r} twice. Remove one of the lines.")
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise DataError(f"{path} names {name!r}, which is not a plain name. {remedy}")
        seen.add(name)
    return tuple(names)


def check_size(
    array: Shaped[np.ndarray, "h w *c"], size: Size, path: pathlib.Path
) -> Shaped[np.ndarray, "h w *c"]:
    """Returns a file's contents after checking that they have the size of its image."""
    height, width = array.shape[:2]
    if size is not None and (height, width) != tuple(size):
        raise DataError(
            f"{path} is {height}x{width} (height x width), its image {size[0]}x{size[1]}. They "
            "must have the same size: does it belong to another image, or to another version of "
            "the dataset?"
        )
    return array


def to_class_ids(
    table: Int32[np.ndarray, " v"],
    values: Integer[np.ndarray, "h w"],
    path: pathlib.Path,
    expected: str,
) -> Int32[np.ndarray, "h w 1"]:
    """Maps the values of a label file to class IDs.

    Args:
      table: Class ID, or the ignore value, of each value; -1 for values that must not occur.
      values: Contents of the file.
      path: Path of the file, for messages.
      expected: Description of the allowed values, for messages.
    """
    padded = np.full(max(len(table), int(values.max()) + 1), -1, np.int32)
    padded[: len(table)] = table
    label = padded[values]
    if label.min() < 0:
        bad = np.unique(values[label < 0]).tolist()
        what = "the value" if len(bad) == 1 else "the values"
        raise DataError(
            f"{path} holds {what} {shortened(bad, 5)}; expected {expected}. Is it the right kind "
            "of label?"
        )
    return label[..., None]


def class_id_table(num_classes: int) -> Int32[np.ndarray, "256"]:
    """Returns the table of `to_class_ids` for files that hold class IDs themselves, and 255."""
    table = np.full(256, -1, np.int32)
    table[:num_classes] = np.arange(num_classes)
    table[IGNORE] = IGNORE
    return table
