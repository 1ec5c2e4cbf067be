"""Requests of a batch, from the caller's question to the last event."""

import time
from collections.abc import Hashable
from dataclasses import dataclass

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import Event, FinishReason
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.slots import SlotCaches
from mllama_cli.engine.completion import Completion
from mllama_cli.engine.sampling import ChosenToken
from mllama_cli.model.visibility import ImageSpan
from mllama_cli.processing.grammar import Constraint
from mllama_cli.processing.image_processor import ImageTiles
from mllama_cli.processing.processor import ModelInputs


class Request:
    """A prompt to answer and, once it is admitted, its caches and its answer.

    Args:
        tiles: those of ``inputs.images``, in order; if empty, they are made when needed.
        streams: whether somebody watches the tokens come, so that the answer can never start again, and memory for all
            of it is reserved at admission.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        sampling: Sampling,
        *,
        tiles: tuple[ImageTiles, ...] = (),
        streams: bool = True,
    ) -> None:
        self.inputs, self.sampling = inputs, sampling
        self.tiles, self.streams = tiles, streams
        self.cancelled = False
        self.submitted = time.perf_counter()
        self.reset()

    def report(self, event: Event | MllamaError) -> None:
        """Take an event of the answer; GenerationStats or an error is the last. Must return at once."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all progress."""
        self.caches: SlotCaches | None = None
        self.answer: Completion | None = None
        self.constraint: Constraint | None = None
        self.chosen: list[ChosenToken] = []
        """Those of ``answer.ids``, if log-probabilities are asked for."""
        self.spans: tuple[ImageSpan, ...] = ()
        self.reserved = 0
        """Bytes that this request may take besides encoded images."""
        self.cached = 0
        """Prompt tokens whose keys and values were found in a cache."""
        self.launched = 0
        """Tokens chosen on the device, read or not."""
        self.new_images = 0
        self.started = self.encoded = self.first_token = 0.0

    @property
    def ids(self) -> tuple[int, ...]:
        return self.inputs.ids

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(image.digest for image in self.inputs.images)

    @property
    def seen_at_the_end(self) -> list[str]:
        """Return the digests of the images that the answer's tokens see."""
        return [digest for digest, span in zip(self.digests, self.spans, strict=True) if span.end is None]


@dataclass(frozen=True)
class BatchRequest:
    """A prompt for ``run_batch``.

    Attributes:
        key: identifies the request to the caller, as the reply's ``key``.
        tiles: those of ``inputs.images``, in order; if empty, they are decoded when needed.
        sampling: None means the checkpoint's defaults.
    """

    key: Hashable
    inputs: ModelInputs
    tiles: tuple[ImageTiles, ...] = ()
    sampling: Sampling | None = None


@dataclass(frozen=True)
class BatchReply:
    """An answer or an ``error``. ``seconds`` count from when the request was admitted.

    ``text`` begins with the request's prefill, which is not in ``ids``.

    ``logprobs`` has one entry for each of ``ids`` if the request's ``Sampling`` asks for them.
    """

    key: Hashable
    text: str = ""
    ids: tuple[int, ...] = ()
    finish_reason: FinishReason = "length"
    prompt_tokens: int = 0
    seconds: float = 0.0
    error: MllamaError | None = None
    logprobs: tuple[ChosenToken, ...] = ()

    @property
    def completion_tokens(self) -> int:
        return len(self.ids)
