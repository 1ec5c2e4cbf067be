"""Tables of the supported image and document formats. File suffixes, media types and messages come from them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """One format.

    Attributes:
        name: for messages; in capitals, Pillow's name of the format.
        plugin: the decoder: ``PIL.<plugin>ImagePlugin``, or ``pillow_heif``.
        media_type: as in a data: URL.
        suffixes: of file names; the first is for files that we write.
        magic: (offset, bytes) pairs, of which a file has one.
        common: name the format in messages.
    """

    name: str
    plugin: str
    media_type: str
    suffixes: tuple[str, ...]
    magic: tuple[tuple[int, bytes], ...]
    common: bool = True

    def matches(self, data: bytes) -> bool:
        """Return whether ``data`` starts with this format's magic number."""
        return any(data[start : start + len(magic)] == magic for start, magic in self.magic)


def _brands(*names: bytes) -> tuple[tuple[int, bytes], ...]:
    return tuple((4, b"ftyp" + name) for name in names)


# Only formats of actual pictures. Pillow reads more, among them EPS, which would start Ghostscript.
IMAGE_FORMATS = (
    ImageFormat(
        "JPEG", "Jpeg", "image/jpeg", (".jpg", ".jpeg", ".jfif", ".jpe", ".jfi", ".jif", ".mpo"),
        ((0, b"\xff\xd8\xff"),),
    ),
    ImageFormat("PNG", "Png", "image/png", (".png", ".apng"), ((0, b"\x89PNG\r\n\x1a\n"),)),
    ImageFormat("WebP", "WebP", "image/webp", (".webp",), ((8, b"WEBP"),)),
    ImageFormat("GIF", "Gif", "image/gif", (".gif",), ((0, b"GIF8"),)),
    ImageFormat("BMP", "Bmp", "image/bmp", (".bmp",), ((0, b"BM"),)),
    ImageFormat(
        "TIFF", "Tiff", "image/tiff", (".tif", ".tiff"),
        ((0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+")),
    ),
    ImageFormat("AVIF", "Avif", "image/avif", (".avif", ".avifs"), _brands(b"avif", b"avis")),
    ImageFormat("ICO", "Ico", "image/x-icon", (".ico",), ((0, b"\0\0\1\0"),), common=False),
    ImageFormat(
        "JPEG2000", "Jpeg2K", "image/jp2", (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
        ((0, b"\0\0\0\x0cjP  "), (0, b"\xff\x4f\xff\x51")), common=False,
    ),
    ImageFormat(
        "PPM", "Ppm", "image/x-portable-anymap", (".ppm", ".pgm", ".pbm", ".pnm"),
        tuple((0, b"P%d" % digit) for digit in range(1, 7)), common=False,
    ),
    ImageFormat("QOI", "Qoi", "image/qoi", (".qoi",), ((0, b"qoif"),), common=False),
    ImageFormat(
        "HEIC", "pillow_heif", "image/heic", (".heic", ".heics", ".hif"),
        _brands(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    ),
    ImageFormat("HEIF", "pillow_heif", "image/heif", (".heif", ".heifs"), _brands(b"mif1", b"msf1")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DocumentFormat:
    """A format whose pages or frames are images.

    Attributes:
        kind: what reads it.
        what: for messages.
        demuxer: FFmpeg's name of a video's format.
        suffixes: of file names.
        magic: (offset, bytes) pairs, of which a file has one.
    """

    kind: Literal["pdf", "video"]
    what: str
    suffixes: tuple[str, ...]
    magic: tuple[tuple[int, bytes], ...]
    demuxer: str = ""


DOCUMENT_FORMATS = (
    DocumentFormat("pdf", "a PDF document", (".pdf",), ((0, b"%PDF-"), (3, b"%PDF-"))),
    DocumentFormat(
        "video", "a video", (".mp4", ".mov", ".m4v", ".3gp", ".3g2"),
        ((4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (0, b"\0\0\0\x08wide"), (0, b"\0\0\0\x08free")), "mov",
    ),
    DocumentFormat("video", "a video", (".mkv", ".webm"), ((0, b"\x1a\x45\xdf\xa3"),), "matroska"),
    DocumentFormat("video", "a video", (".avi",), ((8, b"AVI LIST"),), "avi"),
    DocumentFormat("video", "a video", (".ogv",), ((0, b"OggS"),), "ogg"),
    DocumentFormat("video", "a video", (".flv",), ((0, b"FLV\1"),), "flv"),
    DocumentFormat("video", "a video", (".wmv", ".asf"), ((0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),), "asf"),
    DocumentFormat("video", "a video", (".mpg", ".mpeg", ".vob"), ((0, b"\0\0\1\xba"),), "mpeg"),
)  # fmt: skip

IMAGE_SUFFIXES = tuple(suffix for row in IMAGE_FORMATS for suffix in row.suffixes)

PDF_SUFFIXES = tuple(suffix for row in DOCUMENT_FORMATS if row.kind == "pdf" for suffix in row.suffixes)
DOCUMENT_SUFFIXES = tuple(suffix for row in DOCUMENT_FORMATS for suffix in row.suffixes)

*_first, _last = (row.name for row in IMAGE_FORMATS if row.common)
FORMAT_NAMES = f"{', '.join(_first)} or {_last}"
"""The common formats, for messages."""


def image_format(data: bytes) -> ImageFormat | None:
    """Return the format by magic number, or None. Only decoding tells whether the rest is valid."""
    return next((row for row in IMAGE_FORMATS if row.matches(data)), None)


def document_format(data: bytes) -> DocumentFormat | None:
    """Return the format of a document or video by magic number; None for all else, images included.

    >>> document_format(b"%PDF-1.7").what
    'a PDF document'
    """
    if image_format(data) is not None:  # HEIC and AVIF begin as videos do
        return None
    found = (row for row in DOCUMENT_FORMATS if any(data[at : at + len(magic)] == magic for at, magic in row.magic))
    return next(found, None)


def looks_like_image(head: bytes) -> bool:
    """Return whether a file of unknown name, of which ``head`` is the start, is surely an image.

    Two bytes, as of BMP and PPM, are also how texts begin.
    """
    found = image_format(head)
    return found is not None and all(len(magic) > 2 for _, magic in found.magic)


def media_type(data: bytes) -> str:
    """Return the media type of an image file.

    >>> media_type(b"GIF89a...")
    'image/gif'
    """
    found = image_format(data)
    return found.media_type if found else "application/octet-stream"


def image_suffix(data: bytes) -> str:
    """Return the file suffix of an image file; ``.img`` if its format is unknown.

    >>> image_suffix(bytes.fromhex("ffd8ffe0"))
    '.jpg'
    """
    found = image_format(data)
    return found.suffixes[0] if found else ".img"
