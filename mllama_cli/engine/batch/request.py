"""Requests and replies of a batch."""

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
    """An answer or an ``error``. ``seconds`` count from when the request got its slot.

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

    @classmethod
    def failed(cls, request: BatchRequest, error: MllamaError) -> "BatchReply":
        return cls(request.key, prompt_tokens=len(request.inputs.ids), error=error)

    @property
    def completion_tokens(self) -> int:
        return len(self.ids)
