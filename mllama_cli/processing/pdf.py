"""Draw the pages of PDF documents. Imported by decoding processes alone: pdfium may crash or hang on a hostile file."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from PIL import Image

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError
from mllama_cli.processing.canvas import largest_on_canvas
from mllama_cli.processing.images import Admit, NotAdmittedError
from mllama_cli.processing.limits import MAX_PAGES, MAX_PICTURE_BYTES, MAX_PIXELS
from mllama_cli.processing.memory_budget import DecodingPlan

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

_BYTES_PER_PIXEL = 6
"""Of an embedded picture: its samples as they are decoded, and as they are drawn."""
_FIXED_BYTES = 64_000_000
_MAX_EMBEDDED = 10_000
"""Embedded pictures whose size is looked at."""
_SAVE_AGAIN = "Get the file again; if it opens in a viewer, print it to a new PDF."


@contextmanager
def opened_pdf(part: ImagePart) -> "Iterator[PdfDocument]":
    """Open a PDF document. Raise ImageError if it needs a password, is damaged, or has no or too many pages."""
    try:
        import pypdfium2
        from pypdfium2.raw import FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY
    except ImportError:
        raise ImageError(
            f"{part.name} is a PDF document, and pypdfium2, which reads those, is not installed",
            'Install it: pip install "mllama-cli[pdf]"',
        ) from None
    try:
        document = pypdfium2.PdfDocument(part.data)
    except pypdfium2.PdfiumError as error:
        if error.err_code in (FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY):
            raise ImageError(
                f"{part.name} is encrypted: it opens with a password alone",
                "Save it without one: qpdf --decrypt --password=... in.pdf out.pdf",
            ) from error
        raise ImageError(f"{part.name} is a PDF document that is damaged or has no pages", _SAVE_AGAIN) from error
    try:
        if len(document) < 1:
            raise ImageError(f"{part.name} has no pages", _SAVE_AGAIN)
        if len(document) > MAX_PAGES:
            raise ImageError(
                f"{part.name} has {len(document):,} pages, and at most {MAX_PAGES:,} are read",
                "Split it first: qpdf --split-pages=1000 in.pdf out.pdf",
            )
        document.init_forms()  # what was written into fields is drawn, too
        yield document
    finally:
        document.close()


def draw_page(
    document: "PdfDocument", number: int, part: ImagePart, config: ImageProcessorConfig, admit: Admit | None
) -> Image.Image:
    """Return page ``number``, from 1, of the document in ``part``, as large as the model's canvas.

    Raise ImageError if it is damaged or too large, NotAdmittedError if ``admit`` refuses.
    """
    from pypdfium2 import PdfiumError

    name = f"{part.name}#{number}"
    try:
        page = document[number - 1]
        width, height = page.get_size()
        if not (0 < width < float("inf") and 0 < height < float("inf")):
            raise ImageError(f"{name} has no area ({width:g} x {height:g} points)", _SAVE_AGAIN)
        plan = DecodingPlan(1, 2 * len(part.data) + _FIXED_BYTES + _BYTES_PER_PIXEL * _embedded_pixels(page, name))
        if plan.needed > MAX_PICTURE_BYTES:
            raise ImageError(
                f"{name} takes more than {MAX_PICTURE_BYTES // 1_000_000} MB to draw: its pictures are too large",
                "Print it to a new PDF at a lower resolution.",
            )
        if admit is not None and not admit(plan):
            raise NotAdmittedError
        # Rounded up by the renderer: a whole number must not become the next.
        scale = largest_on_canvas((height, width), config) * (1 - 1e-6)
        image: Image.Image = page.render(scale=scale).to_pil()
        page.close()
    except PdfiumError as error:
        raise ImageError(f"{name} is damaged and cannot be drawn", _SAVE_AGAIN) from error
    return image if image.mode == "RGB" else image.convert("RGB")


def _embedded_pixels(page: "PdfPage", name: str) -> int:
    """Return the pixels of the pictures on a page, of which one is decoded at a time: those of the largest."""
    from pypdfium2.raw import FPDF_PAGEOBJ_IMAGE

    largest = 0
    for index, picture in enumerate(page.get_objects([FPDF_PAGEOBJ_IMAGE])):
        width, height = picture.get_px_size()
        largest = max(largest, width * height)
        if largest > MAX_PIXELS:
            raise ImageError(
                f"{name} has a picture of {width} x {height} pixels, more than {MAX_PIXELS // 1_000_000} million",
                "Print it to a new PDF at a lower resolution.",
            )
        if index >= _MAX_EMBEDDED:
            break
    return largest
