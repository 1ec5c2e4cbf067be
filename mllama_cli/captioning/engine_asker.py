"""Answer the captioning pipeline's questions with an engine in this process."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing

from mllama_cli.captioning.asker import Answer, Question
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import CaptionError
from mllama_cli.core.events import FinishReason
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
        inputs = prompt_of(self._engine, question, self._system, self._prefill)
        return BatchRequest(question.key, inputs, sampling=self._sampling)


def prompt_of(engine: Engine, question: Question, system: str, prefill: str) -> ModelInputs:
    """Return the prompt of a question, by the chat template or, of a base model, verbatim."""
    processor, images = engine.processor, (question.image,)
    if processor.chat_template is None:
        return processor.raw(question.prompt, images, prefill)
    return processor(Conversation.ask(question.prompt, images, system).with_prefill(prefill))


def cut(sampling: Sampling, finish_reason: FinishReason, tokens: int) -> CaptionError | None:
    """Return the error of an answer that had to have a form and was cut before it had it."""
    if sampling.grammar is None or finish_reason == "stop":
        return None
    where = f"at {tokens} tokens" if finish_reason == "length" else "by a stop text"
    return CaptionError(
        f"the answer was cut {where}, so it is not {sampling.grammar.what}", "Raise --max-tokens, or ask for less."
    )
