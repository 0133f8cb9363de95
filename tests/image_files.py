"""PNG files of few bits, TIFF and Netpbm files of any values, which Pillow does not write."""

import struct
import zlib

import numpy as np


def grey_png(values, bits, *, colours=()):
    """Returns a PNG of grey levels, or of palette indices, with 1, 2, 4 or 8 bits each."""
    height, width = values.shape
    digits = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    rows = np.packbits(digits.reshape(height, -1), axis=-1)
    chunks = [(b"PLTE", bytes(colours))] if colours else []
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))]
    return _png(height, width, bits, 3 if colours else 0, chunks)


def claiming_png(height, width):
    """Returns a small PNG of 8-bit RGB that claims a size, and holds no pixel."""
    return _png(height, width, 8, 2, [(b"IDAT", b"")])


def _png(height, width, bits, colour_type, chunks):
    header = struct.pack(">2I5B", width, height, bits, colour_type, 0, 0, 0)
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [(b"IHDR", header), *chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(values):
    """Returns a TIFF of values [h w channels] of any dtype."""
    height, width, channels = values.shape
    data, kind = values.tobytes(), "_uif".index(values.dtype.kind)
    fields = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: 1 + (channels == 3)}
    fields |= {273: 8, 277: channels, 278: height, 279: len(data), 339: kind}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items()]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def netpbm(values, largest, kind):
    """Returns a Netpbm file, "P2" to "P6", of values [h w] or [h w 3]."""
    header = f"{kind}\n# 3 4 5\n{values.shape[1]} {values.shape[0]}\n{largest}\n".encode()
    if kind in ("P2", "P3"):
        return header + "".join(f"{value}\n" for value in values.ravel()).encode()
    return header + values.astype(">u2" if largest > 255 else np.uint8).tobytes()
