"""Read images from any source: also pages of PDF documents, frames of videos and animations, and crops."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import UsageError
from mllama_cli.core.filetypes import document_format
from mllama_cli.core.selection import ALL, Crop, is_pages, split_selection
from mllama_cli.core.text import one_line, shown
from mllama_cli.processing.decoding import Decoder, shared_decoder
from mllama_cli.processing.limits import DEFAULT_LIMITS, MAX_IMAGES, Limits
from mllama_cli.processing.sources import HEAD_BYTES, read_head, read_image
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
            raise UsageError(f"frames must be from 1 to {MAX_IMAGES}, not {self.frames}", "8 is the default.")
        if self.pages and not is_pages(self.pages):
            raise UsageError(f"pages must be like 2-4 or 1,3,5, not {shown(self.pages)}", "Leave it out for all.")


WHOLE = Excerpt()

SourceKind = Literal["image", "pdf", "video"]


@dataclass(frozen=True)
class SourceImages:
    """The images of a source, and of what kind it is: an animation of which frames were asked for is a video."""

    images: tuple[ImagePart, ...]
    kind: SourceKind = "image"


def read_images(
    source: str | Path,
    stdin: BinaryIO | None = None,
    *,
    limits: Limits = DEFAULT_LIMITS,
    pages: str = "",
    frames: int | None = None,
) -> tuple[ImagePart, ...]:
    """Return the images that a source means: one, or the pages of a document, or frames of a video.

    Args:
        source: as ``read_image`` takes it, or such a source with what is meant of it after a #: ``report.pdf#2-4``,
            ``clip.mp4#0:10-0:20``, ``anim.gif#all``, ``photo.jpg#100,200,400,300`` (x, y, width, height). A file whose
            own name ends so comes first. A Path object is always a path.
        stdin: the stream that "-" reads; the process's own by default.
        pages: of a PDF document without anything after a #: ``2-4`` or ``1,3,5``; all by default.
        frames: how many of a video or animation; 8 by default.

    Pages and frames are PNG files, no larger than the model sees them. They, and crops, are called as they would be
    named here. Raises what ``read_image`` raises, and UsageError for parts that are not there, or are too many.
    """
    return read_source(source, stdin, limits=limits, excerpt=Excerpt(pages, frames)).images


def read_source(
    source: str | Path,
    stdin: BinaryIO | None = None,
    *,
    limits: Limits = DEFAULT_LIMITS,
    excerpt: Excerpt = WHOLE,
    room: int = MAX_IMAGES,
    decoder: Decoder | None = None,
) -> SourceImages:
    """Return what ``read_images`` returns, and what kind of source it is.

    Args:
        room: the most images of a document.
        decoder: whose worker processes open documents; the shared one by default.
    """
    file, selection = (source, "") if isinstance(source, Path) else split_source(source)
    path = expanded(file) if isinstance(file, Path) or _may_be_path(file) else None
    head = read_head(path) if path is not None else b""
    data: Path | ImagePart
    if path is not None and (selection or document_format(head) is not None) and head:
        data, name = path, str(file)  # read by a worker
    else:
        data = read_image(file, stdin, limits=limits)
        name, head = data.name, data.data[:HEAD_BYTES]
        if not selection and document_format(head) is None:
            return SourceImages((data,))
    form = document_format(head)
    if form is not None and form.kind == "pdf":
        selection = selection or excerpt.pages
    asked = {"selection": selection, "frames": excerpt.frames, "room": room}
    images = _asked(data, name, asked, decoder or shared_decoder())
    moving: SourceKind = "video" if selection == ALL else "image"
    return SourceImages(images, moving if form is None else form.kind)


def read_parts(part: ImagePart, selection: str, *, room: int, decoder: Decoder) -> tuple[ImagePart, ...]:
    """Return what ``selection`` names of a file that was read, as ``read_source`` does."""
    return _asked(part, part.name, {"selection": selection, "frames": None, "room": room}, decoder)


def split_source(source: str) -> tuple[str, str]:
    """Return a source and what follows its #, unless that is a part of a file's name."""
    file, selection = split_selection(source)
    return (source, "") if selection and _may_be_path(source) and exists(expanded(source)) else (file, selection)


def crop_image(image: ImagePart, crop: Crop) -> ImagePart:
    """Return a part of an image, at full resolution. Raise ImageError, or UsageError if it is outside."""
    return read_parts(image, ",".join(map(str, crop)), room=1, decoder=shared_decoder())[0]


def document_pages(path: str, decoder: Decoder) -> int:
    """Return the number of pages of a PDF document. Raise ImageError."""
    return decoder.ask(path, {}, b"", lambda answer, _: int(answer["pages"]))


def is_document(part: ImagePart) -> bool:
    """Return whether reading its pages or frames takes a worker process."""
    return document_format(part.data[:HEAD_BYTES]) is not None


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

    def read(answer: Mapping[str, Any], payload: memoryview) -> tuple[ImagePart, ...]:
        sizes = [int(size) for size in answer["sizes"]]
        if sum(sizes) != len(payload) or not sizes:
            raise ValueError("not the pictures that were announced")
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        pieces = zip(answer["names"], sizes, ends, strict=True)
        return tuple(ImagePart(bytes(payload[end - size : end]), str(each)) for each, size, end in pieces)

    return decoder.ask(one_line(name, 1000), request, sent, read, if_late=_IF_LATE)
