"""Read images that clients send. A client never names a file of this machine."""

import time
from pathlib import Path

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import DownloadError, UsageError
from mllama_cli.core.selection import split_selection
from mllama_cli.processing.decoding import Decoder
from mllama_cli.processing.documents import is_document, read_parts
from mllama_cli.processing.fetch import fetch_image
from mllama_cli.processing.limits import MAX_IMAGES, Limits
from mllama_cli.processing.message_parts import Reader
from mllama_cli.processing.sources import BASE64_NAME, decode_base64, is_base64_picture, read_image
from mllama_cli.serving.settings import ServerSettings

FETCH_SECONDS = 20.0
"""Time for all downloads of one request; together they may be as large as a body."""
CONNECT_SECONDS = 5.0

_MAX_PATH = 256
"""Characters up to which a text that is not an image is taken for a path."""
_SEND_BASE64 = "Send the image itself, in base64 or as a data: URL."


class SlowError(Exception):
    """A request has an image that takes long to read, and its reader does not."""


def image_reader(settings: ServerSettings, decoder: Decoder, *, slow: bool = True) -> Reader:
    """Return a function that reads images of one request: base64, a data: URL or, where allowed, a public URL.

    A document's pages are read by ``decoder``. It blocks, for seconds if it fetches or reads a document; without
    ``slow`` it raises SlowError instead. Raises UsageError, ImageError or DownloadError.
    """
    limits = Limits(settings.max_body)
    downloads = _Downloads(settings.max_body)
    room = MAX_IMAGES

    def read(source: str | Path) -> tuple[ImagePart, ...]:
        nonlocal room
        text, selection = split_selection(str(source).strip())
        part = read_file(text)
        if selection or is_document(part):
            if not slow:
                raise SlowError
            images = read_parts(part, selection, room=room, decoder=decoder)
        else:
            images = (part,)
        room -= len(images)
        return images

    def read_file(text: str) -> ImagePart:
        scheme = text[:8].partition(":")[0].lower() if ":" in text[:8] else ""
        if scheme == "data":
            return read_image(text, limits=limits)
        if scheme in ("http", "https"):
            if not settings.allow_image_urls:
                raise UsageError("this server does not fetch images (--allow-image-urls lets it)", _SEND_BASE64)
            if not slow:
                raise SlowError
            return downloads.fetch(text)
        if scheme or (len(text) < _MAX_PATH and not is_base64_picture(text)):
            raise UsageError(
                "this is not an image in base64, and the server does not open files by their names", _SEND_BASE64
            )
        return ImagePart(decode_base64(text, BASE64_NAME, limits), BASE64_NAME)

    return read


class _Downloads:
    """The downloads of one request, which share their limits."""

    def __init__(self, max_bytes: int) -> None:
        self._bytes = max_bytes
        self._seconds = FETCH_SECONDS

    def fetch(self, url: str) -> ImagePart:
        if self._seconds <= 0:
            raise DownloadError(f"the images were not there after {FETCH_SECONDS:g} s", _SEND_BASE64)
        start = time.monotonic()
        limits = Limits(self._bytes, min(CONNECT_SECONDS, self._seconds), self._seconds)
        image = fetch_image(url, limits, public_only=True)
        self._seconds -= time.monotonic() - start
        self._bytes -= len(image.data)
        return image
