"""What captioning tells while it goes on. ``captioning.run`` yields these; the terminal draws them."""

from dataclasses import dataclass
from typing import Literal, get_args

Existing = Literal["skip", "overwrite", "append", "prepend"]
"""What becomes of a caption that is there already."""
EXISTING: tuple[Existing, ...] = get_args(Existing)


@dataclass(frozen=True, slots=True)
class CaptionRecord:
    """One picture's line in an output file. ``seconds`` in the model; ``error`` is empty where there is a caption."""

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
class CaptionPlan:
    """The first event: ``total`` pictures were found, of which ``skipped`` have what was asked for already."""

    total: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Captioned:
    """A caption stands where it belongs. ``written_to`` is empty where nothing was written."""

    record: CaptionRecord
    written_to: str = ""


@dataclass(frozen=True, slots=True)
class CaptionSkipped:
    """A picture that was found to need nothing after all: captioned meanwhile, or in another run's hands."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class CaptionFailed:
    """A picture without a caption; ``record.error`` says why, ``hint`` what to do."""

    record: CaptionRecord
    hint: str = ""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """How many pictures are captioned at once from now on."""

    slots: int


CaptionEvent = CaptionPlan | Captioned | CaptionSkipped | CaptionFailed | BatchSize
