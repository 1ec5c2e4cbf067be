"""The image in the system's clipboard."""

import os
import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError, MllamaError
from mllama_cli.core.filetypes import IMAGE_SUFFIXES
from mllama_cli.core.text import one_line
from mllama_cli.processing.decoding import Decoder, shared_decoder
from mllama_cli.processing.sources import read_image
from mllama_cli.system.files import is_file

CLIPBOARD_NAME = "clipboard.png"
_PICTURE = "the picture in the clipboard"
_COPY_SMALLER = "Copy a smaller picture, or save it and use /image PATH."


def read_clipboard_image(decoder: Decoder | None = None) -> ImagePart:
    """Return the copied image, or the image file that was copied in a file manager.

    A worker reads it, as Pillow decodes what it finds. Raise ImageError if there is no image or it cannot be read.
    """

    def read(answer: Mapping[str, Any], payload: memoryview) -> ImagePart:
        return ImagePart(bytes(payload), answer["name"])

    return (decoder or shared_decoder()).ask(_PICTURE, {"clipboard": True}, b"", read, if_late=_COPY_SMALLER)


def grab_clipboard_image() -> ImagePart:
    """Do as ``read_clipboard_image`` in this process, a worker. Raise MllamaError or MemoryError."""
    from PIL import EpsImagePlugin, Image, ImageGrab

    EpsImagePlugin.gs_binary = False  # no Ghostscript: PostScript is a program
    try:
        found = ImageGrab.grabclipboard()
        if isinstance(found, Image.Image):
            buffer = BytesIO()
            found.save(buffer, "PNG", compress_level=1)
            return ImagePart(buffer.getvalue(), CLIPBOARD_NAME)
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{_PICTURE} has too many pixels", _COPY_SMALLER) from error
    except (NotImplementedError, ChildProcessError) as error:
        raise MllamaError(f"The clipboard cannot be read: {_reason(error)}", _helper()) from error
    except Exception as error:  # whatever a decoder says of damaged data
        raise ImageError(
            f"{_PICTURE} cannot be decoded: {_reason(error)}", "Copy it again, or use /image PATH."
        ) from error
    for path in found or []:
        if str(path).lower().endswith(IMAGE_SUFFIXES) and is_file(path):
            return read_image(Path(path))
    raise ImageError("There is no picture in the clipboard", "Copy one first, or use /image PATH.")


def _reason(error: Exception) -> str:
    if isinstance(error, NotImplementedError):  # Pillow's text names its own function
        return "no program that reads it was found"
    return one_line(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__


def _helper() -> str:
    platform: str = sys.platform  # so that type checkers on one system see the branches of the others
    if platform not in ("darwin", "win32"):
        if os.environ.get("WAYLAND_DISPLAY"):
            return "Install wl-clipboard (wl-paste), or use /image PATH."
        if os.environ.get("DISPLAY"):
            return "Install xclip, or use /image PATH."
        return "There is no desktop here; over ssh, copy the file and use /image PATH."
    return "Save the picture to a file and use /image PATH."
