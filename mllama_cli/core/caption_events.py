"""Events of a captioning run: ``captioning.run`` yields them, the terminal shows them."""

from dataclasses import dataclass
from typing import Literal, get_args

Existing = Literal["skip", "overwrite", "append", "prepend"]
"""What to do with existing captions."""
EXISTING: tuple[Existing, ...] = get_args(Existing)


@dataclass(frozen=True, slots=True)
class CaptionRecord:
    """One image's line in an output file. ``seconds`` in the model; ``error`` is empty if there is a caption."""

    path: str
    caption: str = ""
    width: int = 0
    height: int = 0
    tokens: int = 0
    seconds: float = 0.0
    model: str = ""
    prompt: str = ""
    sha256: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class CaptionsPlanned:
    """The first event: ``total`` images were found, of which ``skipped`` have captions already."""

    total: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Captioned:
    """A caption is written. ``written_to`` is empty if no destination keeps it."""

    record: CaptionRecord
    written_to: str = ""


@dataclass(frozen=True, slots=True)
class CaptionSkipped:
    """An image that turned out to need nothing: captioned meanwhile, or locked by another run."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class CaptionFailed:
    """An image without a caption; ``record.error`` says why, ``hint`` what to do."""

    record: CaptionRecord
    hint: str = ""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """How many images are captioned at once from now on."""

    slots: int


CaptionEvent = CaptionsPlanned | Captioned | CaptionSkipped | CaptionFailed | BatchSize
