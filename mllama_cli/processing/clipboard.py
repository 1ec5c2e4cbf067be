"""The image in the system's clipboard."""

import os
import sys
from io import BytesIO
from pathlib import Path

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError, MllamaError
from mllama_cli.core.filetypes import IMAGE_SUFFIXES
from mllama_cli.system.files import is_file

CLIPBOARD_NAME = "clipboard.png"


def read_clipboard_image() -> ImagePart:
    """Return the copied image, or the image file that was copied in a file manager.

    Raises ImageError if the clipboard has no image, MllamaError if the system gives no access to it.
    """
    from PIL import Image, ImageGrab

    try:
        found = ImageGrab.grabclipboard()
    except (NotImplementedError, ChildProcessError, OSError) as error:
        raise MllamaError(f"The clipboard cannot be read: {_reason(error)}", _helper()) from error
    if isinstance(found, Image.Image):
        buffer = BytesIO()
        found.save(buffer, "PNG", compress_level=1)
        return ImagePart(buffer.getvalue(), CLIPBOARD_NAME)
    for path in found or []:
        if str(path).lower().endswith(IMAGE_SUFFIXES) and is_file(path):
            return ImagePart(Path(path).read_bytes(), str(path))
    raise ImageError("There is no picture in the clipboard", "Copy one first, or use /image PATH.")


def _reason(error: Exception) -> str:
    if isinstance(error, NotImplementedError):  # Pillow's text names its own function
        return "no program that reads it was found"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _helper() -> str:
    platform: str = sys.platform  # so that type checkers on one system see the branches of the others
    if platform not in ("darwin", "win32"):
        if os.environ.get("WAYLAND_DISPLAY"):
            return "Install wl-clipboard (wl-paste), or use /image PATH."
        if os.environ.get("DISPLAY"):
            return "Install xclip, or use /image PATH."
        return "There is no desktop here; over ssh, copy the file and use /image PATH."
    return "Save the picture to a file and use /image PATH."
