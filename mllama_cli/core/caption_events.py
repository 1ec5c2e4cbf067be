"""Events of a captioning run: ``captioning.run`` yields them, the terminal shows them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from mllama_cli.core.events import FinishReason

Existing = Literal["skip", "overwrite", "append", "prepend"]
"""What to do with existing captions."""
EXISTING: tuple[Existing, ...] = get_args(Existing)


@dataclass(frozen=True, slots=True)
class CaptionRecord:
    """One image's line in an output file. ``seconds`` counts the time in the model; ``error`` is empty on success."""

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
    """The first event: ``skipped`` of ``total`` images have captions already."""

    total: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Captioned:
    """A caption was written to ``written_to``, which is empty if no destination stores it."""

    record: CaptionRecord
    written_to: str = ""
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 0
    probabilities: Mapping[str, float] | None = None
    """Of each choice, if they were asked for."""


@dataclass(frozen=True, slots=True)
class CaptionSkipped:
    """An image was skipped: it was captioned meanwhile, or another run has locked it."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class CaptionFailed:
    """An image could not be captioned: ``record.error`` says why, ``hint`` what to do; ``kind`` is the error's."""

    record: CaptionRecord
    hint: str = ""
    kind: str = "caption"


@dataclass(frozen=True, slots=True)
class BatchSize:
    """From now on, ``slots`` images are captioned at once."""

    slots: int


@dataclass(frozen=True, slots=True)
class ShardsPlanned:
    """The first event of a run over shards, instead of CaptionsPlanned: ``done`` of ``total`` have their output."""

    total: int
    done: int


@dataclass(frozen=True, slots=True)
class ShardDone:
    """A shard's captions are in ``output``.

    ``damage`` says where a shard breaks off, of which only what precedes was captioned. ``is_new`` is false if another
    worker wrote the output meanwhile, which was then kept.
    """

    path: str
    output: str
    pictures: int
    failed: int
    damage: str = ""
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class ShardFailed:
    """A shard could not be read to its end, so that nothing was written for it."""

    path: str
    error: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ShardLost:
    """A worker died during a shard. The pictures that it had reported, this many, are captioned again."""

    path: str
    pictures: int = 0
    failed: int = 0
    skipped: int = 0
    tokens: int = 0

    def with_picture(self, event: object) -> "ShardLost":
        """Return the counts after another picture's event."""
        match event:
            case Captioned(record):
                return replace(self, pictures=self.pictures + 1, tokens=self.tokens + record.tokens)
            case CaptionFailed():
                return replace(self, failed=self.failed + 1)
            case CaptionSkipped():
                return replace(self, skipped=self.skipped + 1)
        return self


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    """What one of several workers tells, by its name."""

    worker: str
    event: "CaptionEvent | ShardEvent"


ShardEvent = ShardsPlanned | ShardDone | ShardFailed | ShardLost | WorkerEvent
CaptionEvent = CaptionsPlanned | Captioned | CaptionSkipped | CaptionFailed | BatchSize
