"""The model as the pipeline sees it: questions about images in, replies out; and a local engine in that role."""

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from mllama_cli.captioning.decoding import DecodedImage, NotReady
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import ImageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.run import BatchReply, BatchRequest, run_batch
from mllama_cli.engine.engine import Engine
from mllama_cli.processing.image_processor import MllamaImageProcessor
from mllama_cli.processing.processor import ModelInputs


@dataclass(frozen=True)
class Question:
    """A prompt about one image. The reply has the same ``key``."""

    key: Hashable
    prompt: str
    image: DecodedImage


class Asker(Protocol):
    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def image_config(self) -> ImageProcessorConfig:
        """How images are to be decoded for it. Raise ImageError if it cannot see images."""
        ...

    def ask(
        self, questions: Iterable[Question | NotReady], on_batch_size: Callable[[int], None]
    ) -> Generator[BatchReply]:
        """Yield the replies as they come, in any order. Close the generator to stop.

        ``questions`` is pulled no further ahead than needed; ``on_batch_size`` is called with the number of images that
        are captioned at once.
        """
        ...


class EngineAsker:
    """Asks an engine in this process, whose weights must be loaded.

    Args:
        batch_size: images captioned at once; None for as many as memory allows.
    """

    def __init__(self, engine: Engine, sampling: Sampling, system: str = "", batch_size: int | None = None) -> None:
        self._engine = engine
        self._sampling = sampling
        self._system = system
        self._batch_size = batch_size

    @property
    def model(self) -> str:
        return self._engine.name

    @property
    def image_config(self) -> ImageProcessorConfig:
        return self._image_processor.config

    def ask(
        self, questions: Iterable[Question | NotReady], on_batch_size: Callable[[int], None]
    ) -> Generator[BatchReply]:
        return run_batch(self._engine, self._requests(questions), slots=self._batch_size, on_slots=on_batch_size)

    def _requests(self, questions: Iterable[Question | NotReady]) -> Iterator[BatchRequest | None]:
        normalise = self._image_processor.normalise
        for question in questions:
            if isinstance(question, NotReady):
                yield None
            else:
                inputs = self._inputs(question.prompt, question.image.part)
                yield BatchRequest(question.key, inputs, (normalise(question.image.canvas),), self._sampling)

    def _inputs(self, prompt: str, image: ImagePart) -> ModelInputs:
        processor = self._engine.processor
        if processor.chat_template is None:  # a base model
            return processor.raw(prompt, (image,))
        return processor(Conversation.ask(prompt, (image,), self._system))

    @property
    def _image_processor(self) -> MllamaImageProcessor:
        if self._engine.processor.image_processor is None:
            raise ImageError(f"{self._engine.name} is text-only: it cannot see pictures", "Name another model with -m.")
        return self._engine.processor.image_processor
