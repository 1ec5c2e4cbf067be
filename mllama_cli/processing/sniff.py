"""Recognise files that are not images, for helpful error messages."""

from dataclasses import dataclass

from mllama_cli.core.filetypes import FORMAT_NAMES


@dataclass(frozen=True)
class NotAPicture:
    """A kind of file: ``what`` completes "it is ...", ``hint`` says what to do with it."""

    what: str
    hint: str = f"Give a picture: {FORMAT_NAMES}."


_SVG = NotAPicture("an SVG drawing", "Render it to PNG first, for example: rsvg-convert drawing.svg -o drawing.png")
_HTML = NotAPicture("a web page (HTML)", "Open the page in a browser and copy the address of the picture itself.")
_PDF = NotAPicture(
    "a PDF document", "Render its pages to PNG first, for example: pdftoppm -png -r 150 document.pdf page"
)
_VIDEO = NotAPicture("a video", "Take a frame out of it first, for example: ffmpeg -i video.mp4 -frames:v 1 frame.png")
_VECTOR = NotAPicture("a PostScript document", "Render it to PNG first.")
_LFS = NotAPicture("a Git LFS pointer, not the file itself", "Fetch the file first: git lfs pull")
_CONVERT = "Convert it to PNG first."

_MAGIC: tuple[tuple[bytes, NotAPicture], ...] = (
    (b"%PDF-", _PDF),
    (b"%!PS", _VECTOR),
    (b"8BPS", NotAPicture("a Photoshop file", _CONVERT)),
    (b"\xff\x0a", NotAPicture("a JPEG XL picture, which is not supported", _CONVERT)),
    (b"\x00\x00\x00\x0cJXL ", NotAPicture("a JPEG XL picture, which is not supported", _CONVERT)),
    (b"gimp xcf", NotAPicture("a GIMP file", _CONVERT)),
    (b"PK\x03\x04", NotAPicture("a ZIP archive or an office document")),
    (b"\x1f\x8b", NotAPicture("a gzip archive")),
    (b"\x7fELF", NotAPicture("a program")),
    (b"\x1a\x45\xdf\xa3", _VIDEO),
)
_VIDEO_BRANDS = (b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V ", b"3gp")


def not_a_picture(data: bytes) -> NotAPicture | None:
    """Return the kind of a file that is not a supported image, by its first bytes; None if it is unknown.

    None does not mean that the file is an image.

    >>> not_a_picture(b"<!DOCTYPE html><html>").what
    'a web page (HTML)'
    >>> not_a_picture(b"hello, world").what
    'text'
    """
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[4:8] == b"ftyp" and data[8:12].startswith(_VIDEO_BRANDS):
        return _VIDEO
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return _VIDEO
    return _kind_of_text(data[:4096])


def _kind_of_text(head: bytes) -> NotAPicture | None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return NotAPicture("text") if b"\0" in head[2:] else None
    # A netpbm image may be plain text.
    if b"\0" in head or (head[:1] == b"P" and head[1:2].isdigit()):
        return None
    # The cut at 4096 bytes may halve a character: then up to three bytes at the end are undecodable.
    for cut in range(4 if len(head) == 4096 else 1):
        try:
            text = head[: len(head) - cut].decode("utf-8-sig")
            break
        except UnicodeDecodeError:
            continue
    else:
        return None
    start = text.lstrip().lower()
    if start.startswith(("<svg", "<?xml", "<!--", "<!doctype svg")) and "<svg" in start:
        return _SVG
    if start.startswith(("<!doctype html", "<html", "<head", "<body", "<script")) or "<html" in start:
        return _HTML
    if start.startswith("version https://git-lfs"):
        return _LFS
    if start.startswith(("{", "[")):
        return NotAPicture("JSON text")
    if start.startswith("<"):
        return NotAPicture("XML text")
    return NotAPicture("text") if all(c.isprintable() or c.isspace() for c in text) else None
