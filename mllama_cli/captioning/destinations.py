"""Where captions go. What every place has in common, and the place that keeps nothing."""

from typing import Protocol

from mllama_cli.captioning.listing import Picture
from mllama_cli.core.caption_events import CaptionRecord


class Held(Protocol):
    """A picture in work: one of ``write`` and ``drop`` ends it."""

    def write(self, record: CaptionRecord) -> str:
        """Keep the caption; returns where. CaptionError where that place cannot be written."""
        ...

    def drop(self, record: CaptionRecord | None = None) -> None:
        """Let go without a caption; ``record`` says what failed."""
        ...


class Destination(Protocol):
    def is_done(self, picture: Picture) -> bool:
        """Whether the picture has what was asked for already, as far as a quick look tells."""
        ...

    def take(self, picture: Picture) -> Held | str:
        """Hold a picture so that no other run takes it; else why it needs nothing. CaptionError, OSError."""
        ...

    def existing(self, picture: Picture) -> str:
        """The text of the picture's caption file, empty for none."""
        ...

    def finish(self, *, through: bool, complete: bool) -> None:
        """The last call; more do nothing. ``through``: every picture had its turn; ``complete``: has its caption."""
        ...


class Nowhere:
    """Captions that are only told: for standard output."""

    def __init__(self, texts: "Destination | None" = None) -> None:
        self._texts = texts

    def is_done(self, picture: Picture) -> bool:
        return False

    def take(self, picture: Picture) -> Held | str:
        return _Unkept()

    def existing(self, picture: Picture) -> str:
        return self._texts.existing(picture) if self._texts else ""

    def finish(self, *, through: bool, complete: bool) -> None:
        pass


class _Unkept:
    def write(self, record: CaptionRecord) -> str:
        return ""

    def drop(self, record: CaptionRecord | None = None) -> None:
        pass
