"""The model as the pipeline sees it: questions about images in, answers out."""

from collections.abc import Callable, Generator, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import MeasuredImage
from mllama_cli.core.errors import CaptionError, MllamaError
from mllama_cli.core.events import FinishReason
from mllama_cli.core.sampling import Sampling


@dataclass(frozen=True)
class Question:
    """A prompt about one image. Its answer has the same ``key``."""

    key: Hashable
    prompt: str
    image: MeasuredImage


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's text, or the ``error`` that prevented it. ``seconds`` counts the time in the model."""

    key: Hashable
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 0
    error: MllamaError | None = None
    probabilities: Mapping[str, float] | None = None


class Asker(Protocol):
    draws_canvases: bool
    """Whether the images of questions must have their canvas (``PreparedImage``), rather than their size alone."""

    @property
    def model(self) -> str:
        """Return the model's name."""
        ...

    @property
    def image_config(self) -> ImageProcessorConfig:
        """Return how the model's images are prepared. Raise UsageError if the model is text-only."""
        ...

    def ask(self, questions: Iterable[Question | None], on_batch_size: Callable[[int], None]) -> Generator[Answer]:
        """Yield the answers as they come, in any order. Close the generator to stop.

        ``questions`` is pulled no further ahead than needed; None in it means that the next one is not ready.
        ``on_batch_size`` is called with the number of images that are captioned at once.
        """
        ...


def cut(sampling: Sampling, finish_reason: FinishReason, tokens: int) -> CaptionError | None:
    """Return the error of an answer that had to have a form and was cut before it had it."""
    if sampling.grammar is None or finish_reason == "stop":
        return None
    where = f"at {tokens} tokens" if finish_reason == "length" else "by a stop text"
    return CaptionError(
        f"the answer was cut {where}, so it is not {sampling.grammar.what}", "Raise --max-tokens, or ask for less."
    )
