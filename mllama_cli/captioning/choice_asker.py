"""Classify images one by one, with the probability of each choice."""

import time
from collections.abc import Callable, Generator, Iterable

from mllama_cli.captioning.asker import Answer, Question
from mllama_cli.captioning.engine_asker import cut, prompt_of
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import GenerationStats, Prefilled, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine


class ChoiceAsker:
    """An Asker whose ``sampling.grammar`` has choices. The engine's weights must be loaded.

    All choices of an image are read after the same prompt, so images are not batched.
    """

    def __init__(self, engine: Engine, sampling: Sampling, system: str = "", *, prefill: str = "") -> None:
        self._engine, self._sampling = engine, sampling
        self._system, self._prefill = system, prefill

    @property
    def model(self) -> str:
        return self._engine.name

    @property
    def image_config(self) -> ImageProcessorConfig:
        return self._engine.processor.require_vision().config

    def ask(self, questions: Iterable[Question | None], on_batch_size: Callable[[int], None]) -> Generator[Answer]:
        on_batch_size(1)
        for question in questions:
            if question is not None:
                try:
                    yield self._answer(question)
                except MllamaError as error:
                    yield Answer(question.key, error=error)

    def _answer(self, question: Question) -> Answer:
        start, session = time.perf_counter(), self._engine.session()
        assert self._sampling.grammar is not None
        inputs = prompt_of(self._engine, question, self._system, self._prefill)
        text, stats = "", None
        for event in session.stream_inputs(inputs, self._sampling):
            if isinstance(event, Token | Prefilled):
                text += event.text
            elif isinstance(event, GenerationStats):
                stats = event
        assert stats is not None
        return Answer(
            question.key,
            text,
            stats.completion_tokens,
            time.perf_counter() - start,
            stats.finish_reason,
            stats.prompt_tokens,
            cut(self._sampling, stats.finish_reason, stats.completion_tokens),
            session.probabilities(inputs, self._sampling.grammar.texts),
        )
