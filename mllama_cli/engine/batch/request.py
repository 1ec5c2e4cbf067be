"""What goes into a batch and what comes out of it."""

from collections.abc import Hashable
from dataclasses import dataclass

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import FinishReason
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.sampling import ChosenToken
from mllama_cli.processing.image_processor import ImageTiles
from mllama_cli.processing.processor import ModelInputs


@dataclass(frozen=True)
class BatchRequest:
    """A prompt to answer.

    Attributes:
        key: the caller's own; the reply carries it.
        tiles: of the images, in the order of ``inputs.images``; empty: they are made when needed.
        sampling: None takes the checkpoint's defaults.
    """

    key: Hashable
    inputs: ModelInputs
    tiles: tuple[ImageTiles, ...] = ()
    sampling: Sampling | None = None


@dataclass(frozen=True)
class BatchReply:
    """An answer, or the ``error`` why there is none. ``seconds`` count from when it got its slot.

    ``logprobs`` holds the log-probabilities of each of ``ids`` where the request's ``Sampling`` asks for them.
    """

    key: Hashable
    text: str = ""
    ids: tuple[int, ...] = ()
    finish_reason: FinishReason = "length"
    prompt_tokens: int = 0
    seconds: float = 0.0
    error: MllamaError | None = None
    logprobs: tuple[ChosenToken, ...] = ()

    @classmethod
    def failed(cls, request: BatchRequest, error: MllamaError) -> "BatchReply":
        return cls(request.key, prompt_tokens=len(request.inputs.ids), error=error)

    @property
    def completion_tokens(self) -> int:
        return len(self.ids)
