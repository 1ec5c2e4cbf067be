"""List the pages of PDF documents, which are captioned as images are."""

from collections.abc import Iterator
from typing import Self

from mllama_cli.core.errors import ImageError, UsageError
from mllama_cli.core.filetypes import PDF_SUFFIXES, document_format
from mllama_cli.core.selection import page_numbers
from mllama_cli.processing.decoding import Decoder
from mllama_cli.processing.documents import document_pages
from mllama_cli.processing.sources import read_head


def has_pdf_name(path: str) -> bool:
    """Return whether a name or a pattern ends like that of a PDF document."""
    return path.lower().endswith(PDF_SUFFIXES)


class PageCounter:
    """Opens documents in a process of its own, which is started for the first and ends with the ``with`` block."""

    def __init__(self) -> None:
        self._decoder = Decoder(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()

    def pages(self, path: str, selection: str) -> Iterator[int]:
        """Yield the numbers of a document's pages that ``selection`` names; 0 for a file that is not a PDF document.

        A document that cannot be opened has a first page, which fails later with the reason. Raise UsageError for a
        selection that does not fit the file.
        """
        form = document_format(read_head(path)) if has_pdf_name(path) else None
        if form is None or form.kind != "pdf":
            if selection:
                raise UsageError(
                    f"{path} is not a PDF document, of which #{selection} could be captioned", "Leave that out."
                )
            yield 0
            return
        try:
            count = document_pages(path, self._decoder)
        except ImageError:
            yield 1
            return
        yield from page_numbers(selection, count, path)
