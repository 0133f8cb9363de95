"""PNG files of few bits, which Pillow and OpenCV do not write."""

import struct
import zlib

import numpy as np


def grey_png(values, bits, *, colours=()):
    """Returns a PNG of grey levels, or of palette indices, with 1, 2, 4 or 8 bits each."""
    height, width = values.shape
    digits = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    rows = np.packbits(digits.reshape(height, -1), axis=-1)
    header = struct.pack(">2I5B", width, height, bits, 3 if colours else 0, 0, 0, 0)
    chunks = [(b"IHDR", header)] + ([(b"PLTE", bytes(colours))] if colours else [])
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
