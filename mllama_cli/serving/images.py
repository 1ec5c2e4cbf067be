"""Read images that clients send. A client never names a file of this machine."""

from pathlib import Path

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import UsageError
from mllama_cli.processing.fetch import fetch_image
from mllama_cli.processing.limits import Limits
from mllama_cli.processing.message_parts import Reader
from mllama_cli.processing.sources import BASE64_NAME, decode_base64, is_base64_picture, read_image
from mllama_cli.serving.settings import ServerSettings

FETCH_SECONDS = 20.0
CONNECT_SECONDS = 5.0
_MAX_PATH = 256
"""Characters up to which a text that is no image is taken for a path."""
_SEND_BASE64 = "Send the image itself, in base64 or as a data: URL."


def image_reader(settings: ServerSettings) -> Reader:
    """Return a function that reads an image from base64, a data: URL or, where allowed, a public http(s) URL.

    It blocks, for seconds if it fetches. Raises UsageError, ImageError or DownloadError.
    """
    limits = Limits(settings.max_body, CONNECT_SECONDS, FETCH_SECONDS)

    def read(source: str | Path) -> ImagePart:
        text = str(source).strip()
        scheme = text[:8].partition(":")[0].lower() if ":" in text[:8] else ""
        if scheme == "data":
            return read_image(text, limits=limits)
        if scheme in ("http", "https"):
            if not settings.allow_image_urls:
                raise UsageError("this server does not fetch images (--allow-image-urls lets it)", _SEND_BASE64)
            return fetch_image(text, limits, public_only=True)
        if scheme or (len(text) < _MAX_PATH and not is_base64_picture(text)):
            raise UsageError(
                "this is not an image in base64, and the server does not open files by their names", _SEND_BASE64
            )
        return ImagePart(decode_base64(text, BASE64_NAME, limits), BASE64_NAME)

    return read
