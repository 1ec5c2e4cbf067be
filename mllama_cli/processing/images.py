"""Decode image files of any format to upright RGB pixels, with a clear error for each kind of broken file."""

import importlib
from collections.abc import Callable
from io import BytesIO

from PIL import Image, ImageOps

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError
from mllama_cli.core.filetypes import FORMAT_NAMES, IMAGE_FORMATS
from mllama_cli.processing.color import to_rgb
from mllama_cli.processing.sniff import not_a_picture

MAX_PIXELS = 178_956_970
"""The largest width x height; also Pillow's own limit, which some of its decoders apply themselves."""

_SIGNS_OF_A_CUT = ("truncated", "end of file", "eof", "only got", "requires a buffer", "no more images", "too small")
_DAMAGED = "Get the file again; if it opens in an image viewer, save it again as PNG."


def open_image(part: ImagePart) -> Image.Image:
    """Decode to RGB, turned upright by the EXIF orientation, transparency on white, the first frame of an animation.

    Colour profiles are not applied, as in training. Raises ImageError for a file that is not an image, unsupported,
    truncated, damaged, without pixels, or above MAX_PIXELS, which is checked before decoding.
    """
    if not part.data:
        raise ImageError(f"{part.name} is empty (0 bytes)", "Give a picture file with something in it.")
    try:
        image = _identify(part)
        _check_size(image, part.name)
        image.load()
        _turn_upright(image)
        return to_rgb(image)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{part.name} does not fit in memory", "Make the picture smaller first.") from error
    except Image.DecompressionBombError as error:
        raise _too_large(part.name, "it") from error
    except Exception as error:  # on hostile files decoders raise nearly anything, even IndexError and struct.error
        raise _damaged(part, error) from error


def encode_image(image: Image.Image, name: str = "image") -> ImagePart:
    """Return a PIL image of any mode as a lossless ImagePart that ``open_image`` reads back to the same pixels.

    An EXIF orientation that the image still carries is applied.
    """
    if not image.width or not image.height:
        raise ImageError(f"{name} has no pixels ({image.width} x {image.height})", "Give an image of 1 x 1 or more.")
    upright = image.copy()
    _turn_upright(upright)
    buffer = BytesIO()
    # A new RGB image, so that none of the original's metadata gets into the file.
    pixels = to_rgb(upright)
    Image.frombytes("RGB", pixels.size, pixels.tobytes()).save(buffer, "PNG", compress_level=1)
    return ImagePart(buffer.getvalue(), name)


def _identify(part: ImagePart) -> Image.Image:
    """Parse the file's header without decoding pixels.

    Calls each plugin directly, because Image.open's limit doesn't report the size and warns at half of it.
    """
    first_failure: Exception | None = None
    head = part.data[:16].ljust(16, b"\0")  # some plugins read a fixed number of bytes
    for row in IMAGE_FORMATS:
        if row.plugin == "pillow_heif":
            if row.matches(part.data):
                return _identify_heif(part)
            continue
        importlib.import_module(f"PIL.{row.plugin}ImagePlugin")
        factory, accept = Image.OPEN[row.name.upper()]
        accepted = accept(head) if accept is not None else True
        if not accepted or isinstance(accepted, str):  # a string: this format, but Pillow lacks its library
            continue
        try:
            return factory(BytesIO(part.data), "")
        except Image.DecompressionBombError:
            raise
        except Exception as error:
            first_failure = first_failure or error
    if first_failure is not None:
        raise first_failure
    raise _not_a_picture(part)


def _identify_heif(part: ImagePart) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(
            f"{part.name} is a HEIC picture, and pillow-heif, which reads those, is not installed",
            'Install it: pip install "mllama-cli[heic]", or convert the picture to JPEG first.',
        ) from None
    factory: Callable[[BytesIO, str], Image.Image] = HeifImageFile
    return factory(BytesIO(part.data), "")


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height})", _DAMAGED)
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width} x {height}")


def _turn_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation in place, so that ``to_rgb`` still sees the file's format and tags."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except OSError:
        raise
    except Exception:  # damaged metadata: use the image without it
        return


def _too_large(name: str, size: str) -> ImageError:
    return ImageError(
        f"{name} is too large: {size} has more than {MAX_PIXELS // 1_000_000} million pixels",
        "Make it smaller first; the model sees at most 4 tiles of 560 x 560 pixels anyway.",
    )


def _not_a_picture(part: ImagePart) -> ImageError:
    kind = not_a_picture(part.data)
    if kind is None:
        return ImageError(
            f"{part.name} is not a picture in a format that mllama reads",
            f"Give {FORMAT_NAMES}; convert other formats first.",
        )
    return ImageError(f"{part.name} is not a picture: it looks like {kind.what}", kind.hint)


def _damaged(part: ImagePart, error: Exception) -> ImageError:
    if _is_cut_short(part.data, error):
        return ImageError(f"{part.name} is cut short: the end of the picture is missing", _DAMAGED)
    return ImageError(f"{part.name} is damaged and cannot be decoded", _DAMAGED)


def _is_cut_short(data: bytes, error: Exception) -> bool:
    """Return whether the file is cut short, by the decoder's error or the length in a RIFF header (WebP)."""
    if data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return True
    text = str(error).lower()
    return isinstance(error, EOFError) or any(sign in text for sign in _SIGNS_OF_A_CUT)
