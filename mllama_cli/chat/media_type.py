"""What kind of picture bytes are, from how they start: for data URLs and file names. Decodes nothing."""

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"GIF8", "gif"),
    (8, b"WEBP", "webp"),
    (4, b"ftypavif", "avif"),
    (4, b"ftypavis", "avif"),
    (4, b"ftypheic", "heic"),
    (4, b"ftypheix", "heic"),
    (4, b"ftypmif1", "heif"),
    (4, b"ftypmsf1", "heif"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (0, b"BM", "bmp"),
)
_SUFFIXES = {"jpeg": ".jpg", "tiff": ".tif"}


def media_type(data: bytes) -> str:
    """The media type of a picture file.

    >>> media_type(b"GIF89a...")
    'image/gif'
    """
    kind = _kind(data)
    return f"image/{kind}" if kind else "application/octet-stream"


def suffix(data: bytes) -> str:
    """How the name of such a file ends; ``.img`` where that is unknown.

    >>> suffix(bytes.fromhex("ffd8ffe0"))
    '.jpg'
    """
    kind = _kind(data)
    return _SUFFIXES.get(kind, f".{kind or 'img'}")


def _kind(data: bytes) -> str:
    return next((kind for start, magic, kind in _MAGIC if data[start : start + len(magic)] == magic), "")
