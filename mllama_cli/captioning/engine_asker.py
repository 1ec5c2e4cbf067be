"""Answer the captioning pipeline's questions with an engine in this process."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import replace

from mllama_cli.captioning.asker import Answer, Question, cut
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
        prefill: the text that every answer begins with.
        batch_size: images captioned at once; None for as many as memory allows.
    """

    draws_canvases = True

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        system: str = "",
        batch_size: int | None = None,
        *,
        prefill: str = "",
    ) -> None:
        self._engine = engine
        self._sampling = sampling
        self._system = system
        self._prefill = prefill
        self._batch_size = batch_size
        self._last: tuple[str, ModelInputs] | None = None
        """The last prompt, which mostly is that of all images, and what it became, without its image."""

    @property
    def model(self) -> str:
        return self._engine.name

    @property
    def image_config(self) -> ImageProcessorConfig:
        return self._engine.processor.require_vision().config

    def ask(self, questions: Iterable[Question | None], on_batch_size: Callable[[int], None]) -> Generator[Answer]:
        requests = (None if question is None else self._request(question) for question in questions)
        replies = run_batch(self._engine.model, requests, slots=self._batch_size, on_slots=on_batch_size)
        with closing(replies):
            for reply in replies:
                yield Answer(
                    reply.key,
                    reply.text,
                    reply.completion_tokens,
                    reply.seconds,
                    reply.finish_reason,
                    reply.prompt_tokens,
                    reply.error or cut(self._sampling, reply.finish_reason, reply.completion_tokens),
                )

    def _request(self, question: Question) -> BatchRequest:
        images = (question.image,)
        if self._last is None or self._last[0] != question.prompt:
            self._last = question.prompt, replace(self._inputs(question.prompt, images), images=())
        return BatchRequest(question.key, replace(self._last[1], images=images), sampling=self._sampling)

    def _inputs(self, prompt: str, images: tuple[ImagePart, ...]) -> ModelInputs:
        processor = self._engine.processor
        if processor.chat_template is None:  # a base model
            return processor.raw(prompt, images, self._prefill)
        return processor(Conversation.ask(prompt, images, self._system).with_prefill(self._prefill))
