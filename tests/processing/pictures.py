"""Pictures as bytes, made on the spot: sound ones, those with odd side data, and small files of large pictures."""

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


def broken(chunk: bytes) -> bytes:
    return chunk[:-4] + b"\1\2\3\4"


def segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def j2k(width: int, height: int, components: int = 1, block: int = 4, tile: int = 1 << 31) -> bytes:
    """An empty JPEG 2000 codestream."""

    def segment(marker: int, payload: bytes) -> bytes:
        return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload

    size = struct.pack(">H8IH", 0, width, height, 0, 0, min(tile, width), min(tile, height), 0, 0, components)
    start = segment(0x51, size + b"\x07\x01\x01" * components)
    coding = segment(0x52, bytes((0, 0, 0, 1, 0, 5, block, block, 0, 1)))
    quantizing = segment(0x5C, b"\x40" * 17)
    return (
        b"\xff\x4f" + start + coding + quantizing + b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14, 0, 1) + b"\xff\x93"
    )


def tiff(width: int, height: int, bits: int, samples: int, tags: dict[int, int]) -> bytes:
    """A TIFF without pixels."""
    all_tags = {256: width, 257: height, 258: bits, 259: 8, 262: 1, 273: 8, 277: samples, 279: 8, 339: 3, **tags}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(all_tags.items()))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(all_tags)) + entries + bytes(12)


def rows(width: int, height: int, row_bytes: int) -> bytes:
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(row_bytes + 1)) for _ in range(height)) + packer.flush()


def raw_png_of(width: int, height: int, depth: int, color_type: int, *chunks: bytes) -> bytes:
    channels = {0: 1, 6: 4}[color_type]
    whole = raw_png(width, height, depth, color_type, b"", *chunks)
    start = whole.index(b"IDAT") - 4
    return whole[:start] + png_chunk(b"IDAT", rows(width, height, width * channels * depth // 8)) + whole[-12:]


SIDE = 13_377
ICON_HEAD = b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 1 << 30, 22)

PNG_CHUNKS = {
    "text over 1 MB": png_chunk(b"tEXt", b"workflow\0" + b"x" * 1_100_000),
    "compressed text over 1 MB": png_chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(1_100_000))),
    "international text over 1 MB": png_chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"x" * 1_100_000)),
    "64 MB of texts": png_chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(1_000_000))) * 70,
    "profile over 1 MB": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1_100_000))),
    "profile of an unknown method": png_chunk(b"iCCP", b"p\0\7abc"),
    "damaged text": broken(png_chunk(b"tEXt", b"a\0b")),
    "damaged size": broken(png_chunk(b"pHYs", bytes(9))),
    "damaged exif": broken(png_chunk(b"eXIf", b"MM\0*")),
    "nonsense in exif": png_chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"),
    "damaged compressed text": png_chunk(b"zTXt", b"a\0\0not zlib"),
    **{f"short {kind.decode()}": png_chunk(kind, b"\0") for kind in (b"pHYs", b"gAMA", b"cHRM", b"acTL", b"fcTL")},
    "empty sRGB": png_chunk(b"sRGB", b""),
    "no frames": png_chunk(b"acTL", bytes(8)),
    "a name that is none": png_chunk(b"\0\xff12", b"x"),
}

JPEG_SEGMENTS = {
    "empty APP0": segment(0xE0, b""),
    "short JFIF": segment(0xE0, b"JFIF\0\1"),
    "short Adobe": segment(0xEE, b"Adobe\0"),
    "another APP14": segment(0xEE, b"x"),
    "short profile": segment(0xE2, b"ICC_PROFILE\0"),
    "damaged MPF": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "damaged Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\4"),
    "damaged EXIF": segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"),
    "endless EXIF": segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\xff\xff\xff\xff\0\0\0\0"),
    "damaged XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='99'"),
    "a comment with markers in it": segment(0xFE, b"\xff\xda\xff\xd9" * 90),
}
