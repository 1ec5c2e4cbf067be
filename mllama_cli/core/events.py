"""What long work reports while it runs. The engine yields these; nothing below the terminal prints."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "stop_string", "cancelled"]


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know once, in one line; not an error."""

    text: str


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Weights read so far, in bytes."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class EncodingImage:
    """The vision tower is at image ``index`` (from 1) of ``count``, with ``layer`` of its ``layers`` done.

    A GPU reports each image once, at its start; a CPU, which may need a minute, after every layer.
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
class Token:
    """One generated token. ``text`` may be empty while a character's bytes are incomplete.

    Where ``Sampling.logprobs`` asks for it, ``logprob`` is the token's log-probability and ``top_logprobs`` the ids and
    log-probabilities of the likeliest ones.
    """

    id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """The last event of an answer. Times in seconds.

    ``prompt_tokens`` counts the whole prompt, ``cached_tokens`` those of it that an earlier turn left in the cache.
    ``encode_seconds`` is the vision tower and projector, ``prefill_seconds`` the text prefill up to the first sampled
    token; time to first token is their sum plus ``load_seconds`` of weights that this answer was the first to need.
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
        """Decode speed: tokens after the first, over the time they took."""
        after_first = self.completion_tokens - 1
        return after_first / self.decode_seconds if after_first > 0 and self.decode_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """Bytes of a model that are on this machine, of all that it has; ``file`` is the one that grew last."""

    done: int
    total: int
    file: str


@dataclass(frozen=True, slots=True)
class QuantizeProgress:
    """Bytes of the source that are done, of all; ``name`` is the layer or table in progress."""

    done: int
    total: int
    name: str


@dataclass(frozen=True, slots=True)
class RoundingError:
    """Relative squared error of the matrices that were quantized to ``bits``: their mean, and the worst by name."""

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
    | Token
    | GenerationStats
    | DownloadProgress
    | QuantizeProgress
    | QuantizeSummary
)
