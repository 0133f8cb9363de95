"""Hypothesis strategies for the files that people have: images of every kind, whole or damaged."""

import io

import cv2
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from tests.image_files import grey_png, netpbm, tiff

FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "L;2", "L;4", "RGB;16"),
    "JPEG": ("L", "RGB", "CMYK", "RGB turned"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "I;16", "F", "int8", "int16", "int32", "float64"),
    "BMP": ("1", "L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "PPM": ("P2", "P3", "P5", "P6"),
}
SPECIAL_NAMES = (
    ".",
    "..",
    "...",
    "...jpg",
    "..jpg",
    ".jpg",
    " ",
    "-x",
    "~",
    "a\nb",
    "a.b",
    "%s",
    "con",
)


@st.composite
def image_bytes(draw):
    """The bytes of an image file of any format, mode and small size."""
    kind = draw(st.sampled_from(sorted(FORMATS)))
    mode = draw(st.sampled_from(FORMATS[kind]))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    if mode.startswith("L;"):
        bits = int(mode[2:])
        return grey_png(random.integers(0, 2**bits, (height, width)), bits)
    if mode == "RGB;16":
        largest = 2 ** draw(st.integers(0, 16))
        levels = random.integers(0, largest, (height, width, 3)).astype(np.uint16)
        return cv2.imencode(".png", levels)[1].tobytes()
    if kind == "PPM":
        largest = draw(st.integers(1, 2**16 - 1))
        shape = (height, width) if mode in ("P2", "P5") else (height, width, 3)
        return netpbm(random.integers(0, largest + 1, shape), largest, mode)
    if mode.startswith(("int", "float")):
        shape = (height, width, draw(st.sampled_from([1, 3])))
        return tiff(random.integers(0, 100, shape).astype(mode))
    options = {}
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 2**16, (height, width), np.uint16))
    elif mode == "F":
        image = Image.fromarray(random.standard_normal((height, width)).astype(np.float32))
    else:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        image = image.convert(mode.removesuffix(" turned"))
        if mode.endswith(" turned"):
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = draw(st.integers(1, 8))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@st.composite
def array_bytes(draw):
    """The bytes of a .npy file of a small array."""
    dtype = draw(
        st.sampled_from(["float16", "float32", "float64", "uint8", "int32", "bool", "<U3"])
    )
    shape = draw(st.lists(st.integers(0, 8), max_size=3))
    values = np.random.default_rng(0).standard_normal(shape)
    scale = draw(st.sampled_from([1.0, 255.0, 1e39, np.nan]))
    file = io.BytesIO()
    with np.errstate(all="ignore"):
        np.save(file, (values * scale).astype(dtype))
    return file.getvalue()


@st.composite
def damaged(draw, contents):
    """Bytes of `contents`, cut off or with one byte changed."""
    data = bytearray(draw(contents))
    place = draw(st.integers(0, max(0, len(data) - 1)))
    if data and draw(st.booleans()):
        data[place] = draw(st.integers(0, 255))
        return bytes(data)
    return bytes(data[:place])


def file_bytes():
    """The bytes of an image, an array, a damaged one, or anything."""
    whole = image_bytes() | array_bytes()
    return whole | damaged(whole) | st.binary(max_size=200)


def file_names():
    """Names that a file may have on this file system, without a suffix."""
    letters = st.characters(exclude_characters="/\0", exclude_categories=("Cs",))
    text = st.text(letters, min_size=1, max_size=40)
    return st.sampled_from(SPECIAL_NAMES) | text
