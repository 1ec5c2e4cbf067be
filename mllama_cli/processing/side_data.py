"""Drop what a PNG or JPEG file carries besides its pixels, so that no text, profile or thumbnail costs the picture.

Pillow parses and checks all of it, with limits of its own: the workflows that image generators put into PNG files often
exceed them.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")

_SOS, _EOI, _DRI = 0xDA, 0xD9, 0xDD
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_APP_KEPT = {0xE0: (b"JFIF\0", 14), 0xE1: (b"", 0), 0xEE: (b"Adobe", 12)}
"""The application segments that matter to decoding: how each begins, and its shortest sound length."""
_MARKER = re.compile(rb"\xff\xff*[^\x00\xff\xd0-\xd7]")  # begins with one byte, which is searched for faster
_TABLES = frozenset({*_FRAMES, 0xC4, 0xCC, 0xDB, 0xDC, _DRI, _SOS})


def png_pixels(data: bytes) -> bytes:
    """Return a PNG file's header, palette, transparent colour, pixels and sound eXIf chunk.

    A file that breaks off keeps its rest, so that decoding still says so.
    """
    kept = [PNG_SIGNATURE]
    start = offset = len(PNG_SIGNATURE)
    for offset, end in _png_chunks(data):
        kind = data[offset + 4 : offset + 8]
        sound_exif = kind == b"eXIf" and zlib.crc32(data[offset + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
        if kind not in _PNG_KEPT and not sound_exif and end <= len(data):
            kept.append(data[start:offset])
            start = end
    if start == len(PNG_SIGNATURE):
        return data
    return b"".join([*kept, data[start:]])


def _png_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each chunk, up to IEND. The last one may end beyond the file."""
    offset = len(PNG_SIGNATURE)
    while offset + 8 <= len(data):
        end = offset + 12 + int.from_bytes(data[offset : offset + 4])
        yield offset, end
        if data[offset + 4 : offset + 8] == b"IEND":
            return
        offset = end


@dataclass(frozen=True)
class JpegPixels:
    """The first image of a JPEG file.

    Attributes:
        data: the file without its other segments and images.
        scans: how many passes the file makes over the picture.
        coefficient_bytes: what the decoder keeps of each pixel until the last pass; 0 if there is only one.
        mcu: (width, height) in pixels of the smallest coded block.
        has_end: whether the end marker is there.
        restarts: (MCUs between restart markers, 0 for none; restart markers in the last scan).
    """

    data: bytes
    scans: int
    coefficient_bytes: float
    mcu: tuple[int, int]
    has_end: bool
    restarts: tuple[int, int]


def jpeg_pixels(data: bytes) -> JpegPixels:
    """Return the first image of a JPEG file without the segments that no decoder needs."""
    kept, scans, interval, scan_start = [data[:2]], 0, 0, len(data)
    frame, progressive, has_end = b"", False, False
    offset = 2
    while found := _MARKER.search(data, offset):
        marker = data[found.end() - 1]
        # Between the scans' entropy-coded data and this marker.
        kept.append(data[offset : found.start()] if scans else b"")
        offset = found.end()
        if marker == _EOI:
            has_end = True
            break
        if marker in (0x01, 0xD8):
            continue
        length = int.from_bytes(data[offset : offset + 2])
        payload = data[offset + 2 : offset + max(length, 2)]
        start, shortest = _APP_KEPT.get(marker, (b"", 0))
        if marker in _TABLES or (marker in _APP_KEPT and len(payload) >= shortest and payload.startswith(start)):
            kept.append(data[found.end() - 2 : offset + max(length, 2)])
        if marker in _FRAMES and not frame:
            frame, progressive = payload, marker in _PROGRESSIVE
        elif marker == _DRI:
            interval = int.from_bytes(payload[:2])
        offset += max(length, 2)
        if marker == _SOS:
            scans, scan_start = scans + 1, offset
    else:
        kept.append(data[offset:] if scans else b"")
    if has_end:
        kept.append(b"\xff\xd9")
    sampling = [divmod(byte, 16) for byte in frame[7::3]]
    wide, high = max((w for w, _ in sampling), default=1) or 1, max((h for _, h in sampling), default=1) or 1
    several_passes = progressive or scans > 1
    coefficients = 2 * sum(w * h for w, h in sampling) / (wide * high) if several_passes else 0.0
    restarts = len(re.findall(rb"\xff[\xd0-\xd7]", data[scan_start:])) if interval and not has_end else 0
    return JpegPixels(b"".join(kept), scans, coefficients, (8 * wide, 8 * high), has_end, (interval, restarts))


def jpeg_endings(jpeg: JpegPixels, width: int, height: int) -> tuple[bytes, bytes]:
    """Return a JPEG file without an end marker with two ends: where they decode alike, nothing was missing."""
    interval, restarts = jpeg.restarts
    noise = b"\x5a\xa5\x36\xc9" * 4
    if interval:  # each interval is decoded by itself, so each needs noise of its own
        mcus = -(-width // jpeg.mcu[0]) * -(-height // jpeg.mcu[1])
        rest = range(restarts, mcus // interval + 1)
        noise = b"".join(noise + bytes((0xFF, 0xD0 + number % 8)) for number in rest) + noise
    else:
        noise *= 4096
    data = jpeg.data.rstrip(b"\xff")  # half of the end marker
    return data + b"\xff\xd9", data + noise + b"\xff\xd9"
