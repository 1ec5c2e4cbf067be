"""Images that clients send."""

from pathlib import Path

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import UsageError
from mllama_cli.processing.limits import Limits
from mllama_cli.processing.message_parts import Reader
from mllama_cli.processing.sources import BASE64_NAME, decode_base64, read_image
from mllama_cli.serving.settings import ServerSettings


def image_reader(settings: ServerSettings) -> Reader:
    """Return a function that reads what a client names as an image: base64 text or a data: URL, never a path."""
    limits = Limits(max_bytes=settings.max_body)

    def read(source: str | Path) -> ImagePart:
        text = str(source).strip()
        if text[:5].lower() == "data:":
            return read_image(text, limits=limits)
        if "://" in text[:20]:
            raise UsageError("images at addresses are not fetched", "Send the picture itself, in base64.")
        return ImagePart(decode_base64(text, BASE64_NAME, limits), BASE64_NAME)

    return read
