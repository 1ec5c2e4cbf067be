"""Decode image files of any format to upright RGB pixels, with a clear error for each kind of broken file."""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError, MllamaError
from mllama_cli.core.filetypes import FORMAT_NAMES, IMAGE_FORMATS
from mllama_cli.processing.color import is_plain_rgb, to_rgb
from mllama_cli.processing.limits import MAX_JPEG_SCANS, too_many_pixels
from mllama_cli.processing.memory_budget import DecodingPlan, decoder_reduces, plan_decoding
from mllama_cli.processing.side_data import PNG_SIGNATURE, JpegPixels, jpeg_endings, jpeg_pixels, png_pixels
from mllama_cli.processing.sniff import not_a_picture

_SIGNS_OF_A_CUT = ("truncated", "end of file", "eof", "only got", "no more images", "too small")
_DAMAGED = "Get the file again; if it opens in an image viewer, save it again as PNG."

_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


Admit = Callable[[DecodingPlan], bool]
"""Whether an image may be decoded here, once it is known what that takes. It may wait until there is room."""


class NotAdmittedError(Exception):
    """The ``Admit`` function refused an image before its pixels were decoded."""


@dataclass(frozen=True)
class OpenedImage:
    """A decoded image. ``size`` is the file's (width, height); ``pixels`` of a very large one are reduced."""

    pixels: Image.Image
    size: tuple[int, int]


def open_image(part: ImagePart) -> Image.Image:
    """Decode to RGB, turned upright by the EXIF orientation, transparency on white, the first frame of an animation.

    Colour profiles are not applied, as in training. Images that would take more than MAX_PICTURE_BYTES are reduced to
    a half, quarter or eighth. Raises ImageError for a file that is not an image, unsupported, truncated, damaged,
    without pixels, or too large, which is checked before decoding.
    """
    return open_sized(part).pixels


def open_sized(part: ImagePart, admit: Admit | None = None) -> OpenedImage:
    """Decode as ``open_image`` does, and return the size before any reduction as well.

    Raises NotAdmittedError as well, if ``admit`` refuses.
    """
    if not part.data:
        raise ImageError(f"{part.name} is empty (0 bytes)", "Give a picture file with something in it.")
    with decoding_errors(part):
        return _decode(part, admit)


@contextmanager
def decoding_errors(part: ImagePart) -> Iterator[None]:
    """Raise what decoders raise as an ImageError about ``part``; NotAdmittedError as it is."""
    try:
        with warnings.catch_warnings():  # what decoders think of metadata is not for the user
            warnings.simplefilter("ignore")
            yield
    except (MllamaError, NotAdmittedError):
        raise
    except MemoryError as error:
        raise ImageError(f"{part.name} does not fit in memory", "Make the picture smaller first.") from error
    except Image.DecompressionBombError as error:
        raise too_many_pixels(part.name, "it") from error
    except Exception as error:  # on hostile files decoders raise nearly anything, even IndexError and struct.error
        raise _damaged(part, error) from error


def _decode(part: ImagePart, admit: Admit | None) -> OpenedImage:
    jpeg: JpegPixels | None = None
    if part.data.startswith(PNG_SIGNATURE):
        part = ImagePart(png_pixels(part.data), part.name)
    elif part.data.startswith(b"\xff\xd8\xff"):
        jpeg = jpeg_pixels(part.data)
        if jpeg.scans > MAX_JPEG_SCANS:
            raise ImageError(
                f"{part.name} is a JPEG of {jpeg.scans} scans, which would take minutes to decode",
                "Save it again as PNG or as an ordinary JPEG.",
            )
        part = ImagePart(jpeg.data, part.name)
    elif part.data.startswith(b"\0\0\1\0") and (png := _png_in_icon(part.data)):  # Pillow decodes it at once
        return _decode(ImagePart(png, part.name), admit)
    image = identify(part)
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{part.name} has no pixels ({width} x {height})", _DAMAGED)
    # A PNG's getexif() would decode the pixels to look behind them.
    turned = b"eXIf" in part.data if image.format == "PNG" else orientation_of(image) in UPRIGHT
    plan = plan_decoding(
        image,
        part.data,
        part.name,
        converted=not is_plain_rgb(image),
        turned=turned,
        coefficient_bytes=jpeg.coefficient_bytes if jpeg else 0,
        passes=jpeg.scans if jpeg else 1,
    )
    if admit is not None and not admit(plan):
        raise NotAdmittedError
    if jpeg and not jpeg.has_end:
        image = _without_end(jpeg, part, image)
    reduction = plan.reduction
    if reduction > 1 and decoder_reduces(image):
        _reduce_while_decoding(image, reduction)
        reduction = 1
        image.load()
    else:
        image.load()
        width, height = image.size  # a TIFF may be upright only now
    orientation = orientation_of(image)
    pixels = to_rgb(image, reduction)
    del image
    pixels = turned_upright(pixels, orientation)
    swapped = orientation in (5, 6, 7, 8)
    return OpenedImage(pixels, (height, width) if swapped else (width, height))


def _without_end(jpeg: JpegPixels, part: ImagePart, image: Image.Image) -> Image.Image:
    """Return a JPEG without its end marker, ready to decode. Raise OSError if more than the last stripe is missing."""
    one, other = (ImagePart(data, part.name) for data in jpeg_endings(jpeg, *image.size))
    small = (image.width // 8 or 1, image.height // 8 or 1) if image.width * image.height > 16_000_000 else None
    decoded = []
    for each in (one, other):
        trial = identify(each)
        if small:
            trial.draft(None, small)
        decoded.append(np.asarray(trial).reshape(trial.height, trial.width, -1))
    differing = int((decoded[0] != decoded[1]).any(axis=2).sum())
    area = decoded[0].shape[0] * decoded[0].shape[1]
    if differing > max(area // 100, min(256, area // 8)):
        raise OSError("image file is truncated")
    return identify(one)


def _reduce_while_decoding(image: Image.Image, reduction: int) -> None:
    if image.format == "JPEG2000":
        image.reduce = reduction.bit_length() - 1  # type: ignore[assignment, method-assign]
    else:
        image.draft(None, (image.width // reduction, image.height // reduction))


def _png_in_icon(data: bytes) -> bytes:
    """Return the PNG file that an icon's largest image is; nothing for a bitmap. Raise ValueError if that is huge."""
    entries = [data[start : start + 16] for start in range(6, 6 + 16 * int.from_bytes(data[4:6], "little"), 16)]
    largest = min((each for each in entries if len(each) == 16), key=_icon_order)
    size, offset = int.from_bytes(largest[8:12], "little"), int.from_bytes(largest[12:], "little")
    content = data[offset : offset + size]
    if content.startswith(PNG_SIGNATURE):
        return content
    width, height = int.from_bytes(content[4:8], "little"), int.from_bytes(content[8:12], "little")
    if width > 1024 or height > 2048:  # 256 at most, by the format; the height counts twice
        raise ValueError("the bitmap in the icon is too large")
    return b""


def _icon_order(entry: bytes) -> tuple[int, int]:
    """Return a key that puts the largest image first, as Pillow does."""
    return -(entry[0] or 256) * (entry[1] or 256), int.from_bytes(entry[6:8], "little") or 256


def encode_image(image: Image.Image, name: str = "image") -> ImagePart:
    """Return a PIL image of any mode as a lossless ImagePart that ``open_image`` reads back to the same pixels.

    An EXIF orientation that the image still carries is applied.
    """
    if not image.width or not image.height:
        raise ImageError(f"{name} has no pixels ({image.width} x {image.height})", "Give an image of 1 x 1 or more.")
    buffer = BytesIO()
    # A new RGB image, so that none of the original's metadata gets into the file.
    pixels = turned_upright(to_rgb(image), orientation_of(image))
    Image.frombytes("RGB", pixels.size, pixels.tobytes()).save(buffer, "PNG", compress_level=1)
    return ImagePart(buffer.getvalue(), name)


def identify(part: ImagePart) -> Image.Image:
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


def orientation_of(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata: use the image without it
        return 1


def turned_upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


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
