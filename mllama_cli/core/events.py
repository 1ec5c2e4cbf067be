"""Progress events and results of long-running work. The engine yields them; only the terminal prints."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "stop_string", "cancelled"]


@dataclass(frozen=True, slots=True)
class Notice:
    """One line that the user should see once; not an error."""

    text: str


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Weights read so far, in bytes."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class EncodingImage:
    """The vision tower has run ``layer`` of its ``layers`` on image ``index`` (from 1) of ``count``.

    Reported once per image on a GPU; after every layer on a CPU, which may need a minute.
    """

    index: int
    count: int
    layer: int = 0
    layers: int = 0


@dataclass(frozen=True, slots=True)
class ReadingPrompt:
    """Prefill: ``done`` of ``total`` prompt tokens are in the cache."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The beginning of an answer that the request gave, reported before the first token, which goes on with it."""

    text: str


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. ``text`` may be empty while a character's bytes are incomplete.

    With ``Sampling.logprobs``, ``logprob`` is the token's log-probability and ``top_logprobs`` the ids and
    log-probabilities of the likeliest tokens.
    """

    id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """The last event of an answer. Times in seconds.

    ``prompt_tokens`` counts the whole prompt, ``cached_tokens`` the part that an earlier turn left in the cache.
    ``encode_seconds`` is the time of the vision tower and projector, ``prefill_seconds`` that of the text prefill up to
    the first sampled token, ``load_seconds`` that of loading weights that this answer was the first to need.
    """

    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    images: int
    completion_tokens: int
    encode_seconds: float
    prefill_seconds: float
    decode_seconds: float
    load_seconds: float = 0.0

    @property
    def time_to_first_token(self) -> float:
        return self.load_seconds + self.encode_seconds + self.prefill_seconds

    @property
    def tokens_per_second(self) -> float:
        """Return the decode speed: the tokens after the first over their time."""
        after_first = self.completion_tokens - 1
        return after_first / self.decode_seconds if after_first > 0 and self.decode_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """Bytes of a model that are on this machine, of its total; ``file`` is the one that grew last."""

    done: int
    total: int
    file: str


@dataclass(frozen=True, slots=True)
class QuantizeProgress:
    """Bytes of the source that are done, of its total; ``name`` is the layer or table in progress."""

    done: int
    total: int
    name: str


@dataclass(frozen=True, slots=True)
class RoundingError:
    """Relative squared error of the matrices that were quantized to ``bits``: the mean and the worst."""

    bits: int
    matrices: int
    mean: float
    worst: float
    worst_name: str


@dataclass(frozen=True, slots=True)
class QuantizeSummary:
    """The last event of quantizing a checkpoint. Sizes of the weights in bytes."""

    folder: str
    size_before: int
    size_after: int
    bits_per_weight: float
    errors: tuple[RoundingError, ...]
    seconds: float


Event = (
    Notice
    | LoadProgress
    | EncodingImage
    | ReadingPrompt
    | Prefilled
    | Token
    | GenerationStats
    | DownloadProgress
    | QuantizeProgress
    | QuantizeSummary
)
