"""Answer the captioning pipeline's questions with any answerer, several at a time."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing

from mllama_cli.captioning.asker import Answer, Question, cut
from mllama_cli.captioning.decoding import POLL_SECONDS
from mllama_cli.core.answerer import Answerer, Prompt, RawPrompt
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import (
    EngineError,
    MllamaError,
    QueueFullError,
    ShuttingDownError,
    TemplateError,
    UsageError,
)
from mllama_cli.core.events import GenerationStats, Prefilled, Token
from mllama_cli.core.sampling import Sampling

FULL_QUEUE_SECONDS = 0.5
"""How long to wait before asking an engine again whose queue is full."""

_FATAL = (EngineError, ShuttingDownError, TemplateError, UsageError)
"""Errors after which no image can be captioned."""


class AnswererAsker:
    """An Asker.

    Args:
        at_once: questions that are asked at a time: as many as the engine has slots.
        prefill: the text that every answer begins with.
        scores_choices: also return the probability of each choice of ``sampling.grammar``.
        draws_canvases: take images with their canvas, for an engine in this process.
    """

    def __init__(
        self,
        engine: Answerer,
        sampling: Sampling,
        system: str = "",
        *,
        at_once: int = 1,
        prefill: str = "",
        scores_choices: bool = False,
        draws_canvases: bool = False,
    ) -> None:
        self._engine = engine
        self._sampling = sampling
        self._system = system
        self._prefill = prefill
        self._at_once = at_once
        self.draws_canvases = draws_canvases
        self._choices = sampling.grammar.texts if scores_choices and sampling.grammar is not None else ()

    @property
    def model(self) -> str:
        return self._engine.about.name

    @property
    def image_config(self) -> ImageProcessorConfig:
        return self._engine.about.require_images()

    def ask(self, questions: Iterable[Question | None], on_batch_size: Callable[[int], None]) -> Generator[Answer]:
        on_batch_size(self._at_once)
        asked: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        answers: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()
        stopped = threading.Event()
        source, waiting, more = iter(questions), 0, True
        for _ in range(self._at_once):
            # Daemons: one that waits for the engine's next word does not delay the end after Ctrl-C.
            threading.Thread(target=self._work, args=(asked, answers, stopped), daemon=True).start()
        try:
            while more or waiting:
                while more and waiting < self._at_once and answers.empty():
                    question = next(source, _END)
                    if question is None:
                        break
                    if question is _END:
                        more = False
                    elif isinstance(question, Question):
                        asked.put(question)
                        waiting += 1
                if not waiting:
                    continue
                try:
                    answer = answers.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    continue
                waiting -= 1
                if isinstance(answer, Exception):
                    raise answer
                yield answer
        finally:
            stopped.set()
            for _ in range(self._at_once):
                asked.put(None)

    def _work(
        self,
        asked: "queue.SimpleQueue[Question | None]",
        answers: "queue.SimpleQueue[Answer | Exception]",
        stopped: threading.Event,
    ) -> None:
        while (question := asked.get()) is not None and not stopped.is_set():
            try:
                answer = self._answer(question, stopped)
            except MllamaError as error:
                answers.put(error if isinstance(error, _FATAL) else Answer(question.key, error=error))
            except Exception as error:  # a mistake of ours, which the caller's thread reports
                answers.put(error)
            else:
                answers.put(answer)

    def _answer(self, question: Question, stopped: threading.Event) -> Answer:
        while True:
            try:
                return self._stream(question, stopped)
            except QueueFullError:
                if stopped.wait(FULL_QUEUE_SECONDS):
                    raise

    def _stream(self, question: Question, stopped: threading.Event) -> Answer:
        start, said = time.perf_counter(), []
        session, prompt = self._engine.session(), self._prompt(question)
        with closing(session.stream(prompt, self._sampling)) as events:
            for event in events:
                if isinstance(event, Token | Prefilled):
                    said.append(event.text)
                elif isinstance(event, GenerationStats):
                    error = cut(self._sampling, event.finish_reason, event.completion_tokens)
                    scored = session.probabilities(prompt, self._choices) if self._choices and error is None else None
                    return Answer(
                        question.key,
                        "".join(said),
                        event.completion_tokens,
                        time.perf_counter() - start,
                        event.finish_reason,
                        event.prompt_tokens,
                        error,
                        scored,
                    )
                if stopped.is_set():
                    break
        raise EngineError("The engine was not asked to the end")

    def _prompt(self, question: Question) -> Prompt:
        images = (question.image,)
        if not self._engine.about.has_template:  # a base model
            return RawPrompt(question.prompt, images, self._prefill)
        return Conversation.ask(question.prompt, images, self._system).with_prefill(self._prefill)


_END = object()
