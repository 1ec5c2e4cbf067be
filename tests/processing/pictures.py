"""Small pictures as bytes, made on the spot, for the tests of this folder."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int = 24, height: int = 16, mode: str = "RGB") -> Image.Image:
    """Seeded random pixels in any 8-bit mode, or bits in mode 1."""
    rng = np.random.default_rng([width, height])
    if mode == "1":
        return Image.frombytes("1", (width, height), rng.bytes((width + 7) // 8 * height))
    if mode == "PA":  # Pillow makes it from LA only
        return noise(width, height, "LA").convert("PA")
    bands = len(Image.new(mode, (1, 1)).getbands())
    image = Image.frombytes(mode, (width, height), rng.bytes(width * height * bands))
    if mode == "P":
        image.putpalette(rng.bytes(768))
    return image


def file_of(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, color_type: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write: 16-bit colour, and sizes that lie."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body
