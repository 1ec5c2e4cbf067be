"""Interfaces of caption destinations, and the destination that stores nothing."""

from typing import Protocol

from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.core.caption_events import CaptionRecord
from mllama_cli.core.errors import CaptionError
from mllama_cli.core.events import FinishReason
from mllama_cli.system.files import is_disk_full
from mllama_cli.system.safe_files import UnsafeFileError


class LeaseRefusedError(Exception):
    """Another run has captioned the image or is captioning it; the message says which."""


class Lease(Protocol):
    """The right to caption one image. ``write`` ends it, even where it fails, and so does ``release``."""

    def write(self, record: CaptionRecord, finish_reason: FinishReason = "stop") -> str:
        """Store the caption and return where. Raise CaptionError if it cannot be written."""
        ...

    def release(self, record: CaptionRecord | None = None) -> None:
        """Give the image up without a caption; ``record`` says what failed."""
        ...


class CaptionDestination(Protocol):
    def is_done(self, entry: ImageEntry) -> bool:
        """Return whether the image already has its caption, without locking it."""
        ...

    def acquire(self, entry: ImageEntry) -> Lease:
        """Lock an image for this run. Raise LeaseRefusedError, or CaptionError if its caption cannot be written."""
        ...

    def existing(self, entry: ImageEntry) -> str:
        """Return the text of the image's caption file, empty if there is none."""
        ...

    def finish(self, *, exhausted: bool, complete: bool) -> None:
        """End the run; further calls do nothing.

        Args:
            exhausted: every image was tried.
            complete: every image has its caption.
        """
        ...


class NullDestination:
    """Store nothing: for standard output. ``texts`` reads the caption files that prompts quote."""

    def __init__(self, texts: CaptionDestination) -> None:
        self._texts = texts

    def is_done(self, entry: ImageEntry) -> bool:
        return False

    def acquire(self, entry: ImageEntry) -> Lease:
        return _NullLease()

    def existing(self, entry: ImageEntry) -> str:
        return self._texts.existing(entry)

    def finish(self, *, exhausted: bool, complete: bool) -> None:
        pass


class _NullLease:
    def write(self, record: CaptionRecord, finish_reason: FinishReason = "stop") -> str:
        return ""

    def release(self, record: CaptionRecord | None = None) -> None:
        pass


def unwritable(path: str, error: OSError) -> CaptionError:
    """Return the error for a caption that cannot be written."""
    hint = "Free some space and run the same command again to resume."
    if isinstance(error, UnsafeFileError):
        hint = "It was not touched. Move it away, or delete it."
    elif not is_disk_full(error):
        hint = "Check the permissions, or write all captions to one file: --output FILE.jsonl."
    return CaptionError(f"{path} cannot be written: {error.strerror or error}", hint)
