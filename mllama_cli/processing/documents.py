"""Read images from any source: also pages of PDF documents, frames of videos and animations, and crops."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import UsageError
from mllama_cli.core.filetypes import document_format
from mllama_cli.core.selection import Crop, split_selection
from mllama_cli.core.text import one_line
from mllama_cli.processing.decoding import Decoder, shared_decoder
from mllama_cli.processing.limits import DEFAULT_LIMITS, MAX_IMAGES, Limits
from mllama_cli.processing.sources import read_head, read_image
from mllama_cli.system.files import exists, expanded

_IF_LATE = "Choose fewer pages, or a shorter part: report.pdf#1-10, clip.mp4#0:10-0:20"


@dataclass(frozen=True)
class Excerpt:
    """Which parts of documents are read, where their names do not say so.

    Attributes:
        pages: of PDF documents, as after a #.
        frames: how many of a video or animation.
    """

    pages: str = ""
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and not 1 <= self.frames <= MAX_IMAGES:
            raise UsageError(f"the number of frames must be from 1 to {MAX_IMAGES}, not {self.frames}")


ALL_OF_IT = Excerpt()


def read_images(
    source: str | Path,
    stdin: BinaryIO | None = None,
    *,
    limits: Limits = DEFAULT_LIMITS,
    excerpt: Excerpt = ALL_OF_IT,
    room: int = MAX_IMAGES,
    decoder: Decoder | None = None,
) -> tuple[ImagePart, ...]:
    """Return the images that a source means: one, or the pages of a document, or frames of a video.

    Args:
        source: as ``read_image`` takes it, or such a source with what is meant of it after a #: ``report.pdf#2-4``,
            ``clip.mp4#0:10-0:20``, ``anim.gif#all``, ``photo.jpg#100,200,400,300`` (x, y, width, height). A file whose
            own name ends so comes first. A Path object is always a path.
        stdin: the stream that "-" reads; the process's own by default.
        excerpt: what is read of documents that have nothing after a #.
        room: the most images.
        decoder: whose worker processes open documents; the shared one by default.

    Pages and frames are PNG files, no larger than the model sees them. They, and crops, are called as they would be
    named here. Raises what ``read_image`` raises, and UsageError for parts that are not there, or too many.
    """
    file, selection = (source, "") if isinstance(source, Path) else split_source(source)
    data: Path | ImagePart
    path = expanded(file) if not isinstance(file, str) or _may_be_path(file) else None
    if path is not None and (head := read_head(path)):
        if document_format(head) is None and not selection:
            return (read_image(file, limits=limits),)
        data, name = path, str(file)
    else:
        data = read_image(file, stdin, limits=limits)
        name = data.name
        head = data.data[:64]
    form = document_format(head)
    if form is None and not selection:
        assert isinstance(data, ImagePart)
        return (data,)
    if form is not None and form.kind == "pdf":
        selection = selection or excerpt.pages
    asked = {"selection": selection, "frames": excerpt.frames, "room": room}
    return _asked(data, name, asked, decoder or shared_decoder())


def split_source(source: str) -> tuple[str, str]:
    """Return a source and what follows its #, unless that is a part of a file's name."""
    file, selection = split_selection(source)
    return (source, "") if selection and _may_be_path(source) and exists(expanded(source)) else (file, selection)


def crop_image(image: ImagePart, crop: Crop) -> ImagePart:
    """Return a part of an image, at full resolution. Raise ImageError, or UsageError if it is outside."""
    selection = ",".join(map(str, crop))
    asked = {"selection": selection, "frames": None, "room": 1}
    return _asked(ImagePart(image.data, image.name), image.name, asked, shared_decoder())[0]


def document_pages(path: str, decoder: Decoder) -> int:
    """Return the number of pages of a PDF document. Raise ImageError."""
    return decoder.ask(path, {}, b"", lambda answer, _: int(answer["pages"]))


def is_document(part: ImagePart) -> bool:
    """Return whether reading its pages or frames takes a worker process."""
    return document_format(part.data[:64]) is not None


def _may_be_path(source: str) -> bool:
    return source != "-" and "://" not in source and source.lstrip()[:5].lower() != "data:" and len(source) < 10_000


def _asked(data: Path | ImagePart, name: str, asked: Mapping[str, Any], decoder: Decoder) -> tuple[ImagePart, ...]:
    """Ask a worker for pictures of a file, whose bytes go with the question unless it is a path."""
    request: dict[str, Any] = {"excerpts": asked}
    sent = b""
    if isinstance(data, ImagePart):
        sent, request["bytes"] = data.data, len(data.data)
    else:
        request["path"] = str(data)

    def read(answer: Mapping[str, Any], payload: bytes) -> tuple[ImagePart, ...]:
        sizes = [int(size) for size in answer["sizes"]]
        if sum(sizes) != len(payload) or not sizes:
            raise ValueError("not the pictures that were announced")
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        pieces = zip(answer["names"], sizes, ends, strict=True)
        return tuple(ImagePart(payload[end - size : end], str(each)) for each, size, end in pieces)

    return decoder.ask(one_line(name, 1000), request, sent, read, if_late=_IF_LATE)
