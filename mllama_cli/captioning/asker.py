"""The model as the pipeline sees it: questions about images in, answers out."""

from collections.abc import Callable, Generator, Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol

from mllama_cli.captioning.decoding import NotReady
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.errors import MllamaError
from mllama_cli.processing.prepared import PreparedImage


@dataclass(frozen=True)
class Question:
    """A prompt about one image. Its answer has the same ``key``."""

    key: Hashable
    prompt: str
    image: PreparedImage


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says, or the ``error`` that prevented it. ``seconds`` are those spent in the model."""

    key: Hashable
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    error: MllamaError | None = None


class Asker(Protocol):
    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def image_config(self) -> ImageProcessorConfig:
        """How images are to be prepared for the model. Raise UsageError if it cannot see any."""
        ...

    def ask(self, questions: Iterable[Question | NotReady], on_batch_size: Callable[[int], None]) -> Generator[Answer]:
        """Yield the answers as they come, in any order. Close the generator to stop.

        ``questions`` is pulled no further ahead than needed; ``on_batch_size`` is called with the number of images that
        are captioned at once.
        """
        ...
