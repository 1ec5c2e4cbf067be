"""What decoding a picture takes in memory, known from its header, and by how much it must be reduced meanwhile."""

import re
from typing import NamedTuple

from PIL import Image

from mllama_cli.core.errors import ImageError
from mllama_cli.processing.limits import (
    MAX_PICTURE_BYTES,
    MAX_PIXELS,
    MAX_SLOW_PIXELS,
    SMALLER_HINT,
    too_many_pixels,
)

REDUCTIONS = (1, 2, 4, 8)
_DECODER_BYTES = {"WEBP": 13, "AVIF": 13, "HEIF": 13, "GIF": 2}
"""Bytes for each pixel that a decoder takes in addition to the decoded image; 0 for those that go row by row."""
_SIDE_BYTES = 48
"""Bytes for each pixel of the longer side: rows of 16-bit samples, and the weights with which it is resized."""
_FIXED_BYTES = 64_000_000
_CODE_BLOCK_BYTES = 400
_J2K_START = re.compile(rb"\xff\x4f\xff\x51")


class DecodingPlan(NamedTuple):
    """How an image is decoded, and what that takes.

    Attributes:
        reduction: the factor by which it is reduced meanwhile.
        needed: the bytes of memory that this takes at most.
        passes: over the image: the scans of a JPEG.
    """

    reduction: int
    needed: int
    passes: int = 1


def plan_decoding(
    image: Image.Image,
    data: bytes,
    name: str,
    *,
    converted: bool,
    turned: bool,
    coefficient_bytes: float = 0,
    passes: int = 1,
) -> DecodingPlan:
    """Return how an opened image is decoded within the budget, reduced as little as possible.

    ``converted`` and ``turned`` say whether a second image is made of it. Raise ImageError if nothing helps.
    """
    width, height = image.size
    pixels = width * height
    if pixels > MAX_PIXELS:
        raise too_many_pixels(name, f"{width} x {height}")
    slow = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))
    if slow and max(pixels, len(data) // 4) > MAX_SLOW_PIXELS:
        raise ImageError(
            f"{name} is too large: {width} x {height} pixels of a format that takes minutes to decode",
            "Convert it to PNG or JPEG first.",
        )
    for reduction in REDUCTIONS:
        needed = _bytes_needed(image, data, reduction, converted, turned, coefficient_bytes)
        if needed <= MAX_PICTURE_BYTES:
            return DecodingPlan(reduction, int(needed), passes)
    size = f"{width} x {height} pixels of this kind take more than {MAX_PICTURE_BYTES // 1_000_000} MB to decode"
    raise ImageError(
        f"{name} is too large: {size}",
        SMALLER_HINT,
    )


def decoder_reduces(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO", "JPEG2000")


def mode_bytes(mode: str) -> int:
    """Return how many bytes Pillow takes for a pixel of this mode."""
    return 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4


def _bytes_needed(
    image: Image.Image, data: bytes, reduction: int, converted: bool, turned: bool, coefficient_bytes: float
) -> float:
    width, height = image.size
    pixels, reduced = width * height, width * height / reduction**2
    loaded = mode_bytes(image.mode) * (reduced if decoder_reduces(image) else pixels)
    if image.format == "JPEG2000":
        decoder = _j2k_bytes(data, len(image.getbands()), reduced, reduction)
    elif image.format == "TIFF":
        decoder = _tiff_bytes(image)
    else:
        decoder = (coefficient_bytes + _DECODER_BYTES.get(image.format or "", 0)) * pixels
    result = 4 * reduced if converted or (reduction > 1 and not decoder_reduces(image)) else 0
    copy = 4 * reduced if turned else 0
    if turned and image.format == "TIFF":  # turned by Pillow, before it is converted
        decoder = max(decoder, loaded)
    peak = max(loaded + decoder, loaded + result, (result or loaded) + copy)
    return peak + _FIXED_BYTES + 2 * len(data) + _SIDE_BYTES * max(width, height)


def _tiff_bytes(image: Image.Image) -> int:
    """Return the size of a decoded strip or tile, which may be larger than the image."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, 1)
    sample_bits = max(bits) if isinstance(bits, tuple) else bits
    pixel_bytes = max(4, int(sample_bits) * int(tags.get(277, 1)) // 8)
    if 322 in tags:
        return int(tags[322]) * int(tags.get(323, 1)) * pixel_bytes
    return min(int(tags.get(278, image.height)), image.height) * image.width * pixel_bytes


def _j2k_bytes(data: bytes, bands: int, reduced: float, reduction: int) -> float:
    """Return what OpenJPEG takes: 32-bit samples twice, and records of its code blocks, of every resolution.

    The codestream's own size counts, not the one that the file around it declares.
    """
    found = _J2K_START.search(data)
    if found is None:
        raise ValueError("no JPEG 2000 codestream")
    size = found.end() + 4
    right, low, left, top, tile_wide, tile_high = (
        int.from_bytes(data[size + 4 * index : size + 4 * index + 4]) for index in range(6)
    )
    components = int.from_bytes(data[size + 32 : size + 34])
    pixels = max(0, right - left) * max(0, low - top)
    if pixels > MAX_PIXELS or components > 4 or not tile_wide or not tile_high:
        return float("inf")
    levels, block = _j2k_coding(data, found.end() + int.from_bytes(data[found.end() : found.end() + 2]))
    if reduction > 1 << levels:
        return float("inf")
    tiles = -(-right // tile_wide) * -(-low // tile_high)
    samples = max(reduced, pixels / reduction**2)
    return 9 * max(components, bands) * samples + _CODE_BLOCK_BYTES * pixels * components / block + 8000 * tiles


def _j2k_coding(data: bytes, offset: int) -> tuple[int, int]:
    """Return how often the resolution is halved at least, and the pixels of the smallest code block or precinct."""
    codings = []
    while offset + 4 <= len(data) and data[offset] == 0xFF and (marker := data[offset + 1]) != 0x90:
        end = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4])
        if marker in (0x52, 0x53):  # COD, COC
            style, start = (data[offset + 4], offset + 9) if marker == 0x52 else (data[offset + 5], offset + 6)
            levels, wide, high = data[start : start + 3]
            precincts = [(size & 15) + (size >> 4) for size in data[start + 3 : end]] if style & 1 else []
            codings.append((levels, min([4 + (wide & 15) + (high & 15), *precincts])))
        offset = end
    if not codings:
        raise ValueError("truncated JPEG 2000 header")
    return min(levels for levels, _ in codings), 1 << min(block for _, block in codings)
