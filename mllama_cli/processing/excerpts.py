"""Make pictures of pages, frames and crops: what ``decoding_worker`` does for ``documents``."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError, UsageError
from mllama_cli.core.filetypes import DocumentFormat, document_format
from mllama_cli.core.selection import ALL, Crop, crop_box, page_numbers
from mllama_cli.processing.canvas import fitted
from mllama_cli.processing.image_frames import frame_count, open_frames
from mllama_cli.processing.images import Admit, OpenedImage, encode_image, open_sized
from mllama_cli.processing.limits import DEFAULT_FRAMES, MAX_VIDEO_BYTES, too_many_images
from mllama_cli.processing.pdf import draw_page, opened_pdf
from mllama_cli.processing.sources import HEAD_BYTES, read_head, read_image
from mllama_cli.processing.video import frame_names, video_frames

MAX_CROP_PIXELS = 16_000_000
"""A crop of more pixels is reduced: the model sees far fewer."""

_CANVAS = ImageProcessorConfig()
"""What pages are drawn for before the model is known: all published checkpoints have the same canvas."""


def make_excerpts(
    source: ImagePart | Path,
    name: str,
    *,
    selection: str,
    frames: int | None,
    room: int,
    admit: Admit | None = None,
) -> list[ImagePart]:
    """Return the pages, frames or crop of a file, as PNG files, in order.

    Args:
        source: the file's bytes, or its path.
        selection: as in ``core.selection``; empty for all pages, or frames spread over the whole.
        frames: how many of a video or animation; DEFAULT_FRAMES by default.
        room: the most pictures.

    Raise ImageError for a damaged file, UsageError for a selection that does not fit it or is larger than ``room``.
    """
    head = source.data[:HEAD_BYTES] if isinstance(source, ImagePart) else read_head(source)
    form = document_format(head)
    if form is not None and form.kind == "video":
        return _frames(source, name, form, selection, frames, room, admit)
    part = read_image(source) if isinstance(source, Path) else source
    part = ImagePart(part.data, name)
    if form is not None:
        with opened_pdf(part) as document:
            numbers = _checked(page_numbers(selection, len(document), name), name, "page", room)
            return [
                encode_image(draw_page(document, number, part, _CANVAS, admit), f"{name}#{number}")
                for number in numbers
            ]
    if (crop := crop_box(selection)) is not None:
        return [_cropped(open_sized(part, admit), crop, name, f"{name}#{selection}")]
    return _frames_of_image(part, selection, frames, room, admit)


def count_pages(path: Path) -> int:
    """Return the number of pages of a PDF document. Raise ImageError."""
    with opened_pdf(read_image(path)) as document:
        return len(document)


def page_picture(path: Path, number: int, config: ImageProcessorConfig, admit: Admit | None) -> ImagePart:
    """Return one page of a PDF document as a PNG file. Raise ImageError."""
    part = read_image(path)
    with opened_pdf(part) as document:
        return encode_image(draw_page(document, number, part, config, admit), f"{path}#{number}")


def _frames(
    source: ImagePart | Path,
    name: str,
    form: DocumentFormat,
    selection: str,
    frames: int | None,
    room: int,
    admit: Admit | None,
) -> list[ImagePart]:
    count = DEFAULT_FRAMES if frames is None else frames
    if count > room:
        raise too_many_images(name, count, "frame", room)
    with _stream(source, name) as file:
        found = video_frames(file, form.demuxer, name, selection, count, _CANVAS, admit)
    names = frame_names(name, found)
    return [encode_image(frame.image, each) for frame, each in zip(found, names, strict=True)]


@contextmanager
def _stream(source: ImagePart | Path, name: str) -> Iterator[BinaryIO]:
    if isinstance(source, ImagePart):
        yield io.BytesIO(source.data)
        return
    if source.stat().st_size > MAX_VIDEO_BYTES:
        raise ImageError(f"{name} is larger than {MAX_VIDEO_BYTES >> 20} MiB", "Cut a part out of it first.")
    with source.open("rb") as file:
        yield file


def _frames_of_image(
    part: ImagePart, selection: str, frames: int | None, room: int, admit: Admit | None
) -> list[ImagePart]:
    """Return pages of a TIFF file, frames of an animation, or the one picture of another image."""
    count, moving = frame_count(part)
    what = "frame" if moving else "page"
    if moving and selection in ("", ALL):
        most = min(count, DEFAULT_FRAMES if frames is None else frames)
        numbers: Sequence[int] = [1 + int((index + 0.5) * count / most) for index in range(most)]
    else:
        numbers = page_numbers(selection, count, part.name, what=what)
    numbers = _checked(numbers, part.name, what, room)
    if count == 1:
        return [part]
    opened = open_frames(part, numbers, admit)
    return [
        _encoded(fitted(image, _CANVAS), f"{part.name}#{number}") for number, image in zip(numbers, opened, strict=True)
    ]


def _checked(numbers: Sequence[int], name: str, what: str, room: int) -> Sequence[int]:
    if len(numbers) > room:
        raise too_many_images(name, len(numbers), what, room)
    return numbers


def _cropped(image: OpenedImage, crop: Crop, name: str, label: str) -> ImagePart:
    """Return a part of an image, in pixels of the file, up to the image's edges. Raise UsageError if it is outside."""
    x, y, width, height = crop
    whole_width, whole_height = image.size
    if not (width and height) or x >= whole_width or y >= whole_height:
        raise UsageError(
            f"{name} is {whole_width} x {whole_height} pixels, and nothing of that is in {label.rpartition('#')[2]}",
            "A crop is x,y,width,height, in pixels from the upper left corner.",
        )
    right, low = min(x + width, whole_width), min(y + height, whole_height)
    across, down = image.pixels.width / whole_width, image.pixels.height / whole_height  # less than 1 if it was reduced
    box = (
        int(x * across),
        int(y * down),
        max(int(right * across), int(x * across) + 1),
        max(int(low * down), int(y * down) + 1),
    )
    pixels = image.pixels.crop(box)
    while pixels.width * pixels.height > MAX_CROP_PIXELS:
        pixels = pixels.reduce(2)
    return _encoded(pixels, label)


def _encoded(upright: Image.Image, name: str) -> ImagePart:
    """Return an upright image as a PNG file, whatever orientation its metadata still tell."""
    return encode_image(Image.frombytes("RGB", upright.size, upright.tobytes()), name)
