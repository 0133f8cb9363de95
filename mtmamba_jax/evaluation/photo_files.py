"""Finds and reads files of photos."""

import collections
import contextlib
import dataclasses
import io
import os
import pathlib
import re
import warnings
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageOps

from mtmamba_jax.data_pipelines.read_files import fits, is_web_page, used_bits
from mtmamba_jax.files.paths import walk_files
from mtmamba_jax.messages import counted

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
_HEIC = (b"he", b"mif", b"msf", b"mia")  # beginnings of its brands
_AVIF = {b"avif", b"avis"}
# Width, height and largest value of a Netpbm file of numbers in binary or text.
_NETPBM = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#.*\n)+(\d+)")
_SAVE = "save it as JPEG or PNG"
_ANY_COLOUR = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH  # alone, the first divides 16 bits by 256
_LARGEST_FILE = 2**31 - 1  # bytes; OpenCV takes no more


@dataclasses.dataclass(frozen=True)
class Failure:
    """A photo without a prediction, and the reason."""

    path: pathlib.Path
    reason: str


@dataclasses.dataclass(frozen=True)
class Note:
    """What was assumed about a photo."""

    path: pathlib.Path
    text: str


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo as RGB, and what was assumed about it."""

    pixels: UInt8[np.ndarray, "h w 3"]
    note: Note | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """What `find_photos` found.

    Attributes:
      photos: Files to predict, each once.
      failures: Paths that do not exist, cannot be read, hold no photo or lie in the output folder.
      skipped: A line for each folder with files that were not taken for photos.
    """

    photos: list[pathlib.Path]
    failures: list[Failure]
    skipped: list[str]


def find_photos(paths: Sequence[pathlib.Path], skip: pathlib.Path) -> Found:
    """Finds photos, each once.

    Args:
      paths: Files, and folders to search with their subfolders, also linked ones.
      skip: Folder of predictions, which are not photos.
    """
    photos: dict[pathlib.Path, pathlib.Path] = {}
    found, skip = Found([], [], []), skip.resolve()
    for path in paths:
        if path.resolve().is_relative_to(skip):
            reason = "lies in the output folder; choose another --output"
            found.failures.append(Failure(path, reason))
        elif path.is_dir():
            photos |= {each.resolve(): each for each in _search(path, skip, found)}
        elif path.exists():
            photos[path.resolve()] = path
        else:
            found.failures.append(Failure(path, "does not exist"))
    found.photos.extend(photos.values())
    return found


def _search(folder: pathlib.Path, skip: pathlib.Path, found: Found) -> list[pathlib.Path]:
    """Returns the photos below a folder; adds what it holds besides to `found`."""

    def fail(error: OSError) -> None:
        found.failures.append(Failure(pathlib.Path(error.filename), f"{error.strerror}"))

    below = [folder / file for file in walk_files(folder, hidden=True, on_error=fail)]
    below = [file for file in below if not file.parent.resolve().is_relative_to(skip)]
    files = [(file, _other_kind(file)) for file in below]
    others = [(file, kind) for file, kind in files if kind]
    counts = collections.Counter(kind for _, kind in others).most_common()
    listed = ", ".join(f"{count} {kind}" for kind, count in counts)
    if len(others) == len(files):
        also = f"; it holds {listed}. Save photos as JPEG or PNG" if others else ""
        reason = f"holds no photo ({' '.join(SUFFIXES)}){also}"
        found.failures.append(Failure(folder, reason))
    elif others:
        found.skipped.append(
            f"{folder}: skipped {counted(len(others), 'file')} not read as photos: {listed}; "
            f"the first is {others[0][0]}. Save photos among them as JPEG or PNG."
        )
    return [file for file, kind in files if not kind]


def _other_kind(file: pathlib.Path) -> str:
    """Returns what a file is if it is not taken for a photo, "" if it is."""
    if file.name.startswith("._"):
        return "._* (of macOS)"
    if not os.path.isfile(file):
        return "device or pipe" if os.path.exists(file) else "broken link"
    suffix = file.suffix.lower()
    return "" if suffix in SUFFIXES else suffix or "without suffix"


def read_photo(path: pathlib.Path, bits: int | None = None) -> Photo | Failure:
    """Returns a photo, rotated as its EXIF data says, or why it cannot be read.

    Of files with several images it is the first. `bits` is how many bits hold the data of a 16-bit
    file; if it is None, that is taken from the largest values, and noted. Up to 0.1 % of the values
    may be larger, such as hot pixels, and are clipped.
    """
    try:
        if not path.is_file():
            return Failure(path, "not a file")
        if path.stat().st_size > _LARGEST_FILE:
            return Failure(path, f"has more than 2 GB; {_SAVE}")
        data = path.read_bytes()
    except OSError as error:
        return Failure(path, error.strerror or str(error))
    if not data:
        return Failure(path, "the file is empty")
    if _is_heic(data):
        return Failure(path, f"is HEIC, which is not read here; {_SAVE}")
    with _without_messages():
        return _decode(path, data, bits)


def _decode(path: pathlib.Path, data: bytes, bits: int | None) -> Photo | Failure:
    try:
        image = _open(data)
    except Image.DecompressionBombError:
        megapixels = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        return Failure(path, f"has more than {megapixels} megapixels; shrink it")
    try:
        # OpenCV does not turn AVIF as its EXIF data says.
        if image is None or image.format != "AVIF":
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _ANY_COLOUR)
            if pixels is not None:
                return _to_8_bits(path, pixels, bits, _largest_value(data))
        if image is not None and image.mode[0] in "IF":  # which convert() would clip to 255
            return Failure(path, f"holds {np.asarray(image).dtype} values; {_SAVE}")
        if image is not None:
            return Photo(np.array(ImageOps.exif_transpose(image).convert("RGB")))
    except Exception as error:  # for damaged files Pillow raises many types
        return Failure(path, f"not decodable: {' '.join(str(error).split())}")
    if data.startswith((b"II*\0", b"MM\0*")):
        return Failure(path, f"is a TIFF of a kind that is not read here, or damaged; {_SAVE}")
    what = "but a web page" if is_web_page(data) else "or a damaged one"
    return Failure(path, f"not an image, {what}")


@contextlib.contextmanager
def _without_messages() -> Iterator[None]:
    """Drops what image libraries, also in C, print about a damaged file beside their errors."""
    try:
        kept = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _is_heic(data: bytes) -> bool:
    """Returns whether a file is in the format HEIF, but not AVIF."""
    if data[4:8] != b"ftyp":
        return False
    length = int.from_bytes(data[:4], "big")  # of the list of brands
    brands = {data[i : i + 4] for i in (8, *range(16, min(length, 256), 4))}
    return not brands & _AVIF and any(brand.startswith(_HEIC) for brand in brands)


def _largest_value(data: bytes) -> int | None:
    """Returns the value that is white in a Netpbm file, if OpenCV returns values as they are."""
    header = _NETPBM.match(data)
    largest = int(header[4]) if header else 0
    as_stored = header and (header[1] in b"56" or largest > 255)
    return largest if as_stored and largest < 65535 else None


def _to_8_bits(
    path: pathlib.Path, pixels: Num[np.ndarray, "h w 3"], bits: int | None, largest: int | None
) -> Photo | Failure:
    """Returns BGR as RGB of 8 bits; `largest` is the value that is white, if the file says so."""
    if pixels.dtype not in (np.uint8, np.uint16):
        return Failure(path, f"holds {pixels.dtype} values; {_SAVE}")
    pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    if largest and not bits:
        levels = np.rint(np.arange(largest + 1) * (255 / largest)).astype(np.uint8)
        return Photo(levels[np.minimum(pixels, largest)])
    if pixels.dtype == np.uint8:
        return Photo(pixels)
    if bits is not None and not fits(pixels, bits):
        return Failure(path, f"holds {pixels.max()}, too large for --bits={bits}")
    used, note = bits or used_bits(pixels), None
    clipped = np.count_nonzero(pixels > 2**used - 1)
    if bits is None and used < 16:
        but = f" but for {clipped} larger ones, which are clipped" if clipped else ""
        text = f"a 16-bit file whose values fit in {used} bits{but}, read as {used}-bit data"
        note = Note(path, f"{text}; --bits=N reads it as N-bit data, N from 8 to 16 (dark)")
    if clipped:
        pixels = np.minimum(pixels, 2**used - 1)
    return Photo((pixels >> used - 8).astype(np.uint8), note)


def _open(data: bytes) -> Image.Image | None:
    """Returns an image of which only the size and format were read; None if Pillow cannot.

    Raises:
      Image.DecompressionBombError: If it has more pixels than Pillow reads.
    """
    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise
    except Exception:  # for damaged files it raises many types
        return None
