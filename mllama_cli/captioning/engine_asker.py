"""An engine in this process that answers the questions of the captioning pipeline."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing

from mllama_cli.captioning.asker import Answer, Question
from mllama_cli.captioning.decoding import NotReady
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.engine import Engine
from mllama_cli.processing.processor import ModelInputs


class EngineAsker:
    """An Asker. The engine's weights must be loaded.

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
        return self._engine.processor.require_vision().config

    def ask(self, questions: Iterable[Question | NotReady], on_batch_size: Callable[[int], None]) -> Generator[Answer]:
        requests = self._requests(questions)
        with closing(
            run_batch(self._engine.model, requests, slots=self._batch_size, on_slots=on_batch_size)
        ) as replies:
            for reply in replies:
                yield Answer(reply.key, reply.text, reply.completion_tokens, reply.seconds, reply.error)

    def _requests(self, questions: Iterable[Question | NotReady]) -> Iterator[BatchRequest | None]:
        for question in questions:
            if isinstance(question, NotReady):
                yield None
            else:
                inputs = self._inputs(question.prompt, question.image)
                yield BatchRequest(question.key, inputs, sampling=self._sampling)

    def _inputs(self, prompt: str, image: ImagePart) -> ModelInputs:
        processor = self._engine.processor
        if processor.chat_template is None:  # a base model
            return processor.raw(prompt, (image,))
        return processor(Conversation.ask(prompt, (image,), self._system))
