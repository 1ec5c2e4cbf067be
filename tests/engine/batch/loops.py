"""Callers of an EngineLoop on other threads than its own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import Event, GenerationStats, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.loop import EngineLoop, Handle, LoopStats
from mllama_cli.engine.engine import Engine
from mllama_cli.processing.processor import ModelInputs

PATIENCE = 60.0
"""Seconds after which a test gives up on an event; none takes a tenth of it."""


class Caller:
    """Submits one request and keeps its events."""

    def __init__(
        self, engine: Engine, loop: EngineLoop, asked: ModelInputs | Conversation | str, sampling: Sampling
    ) -> None:
        if isinstance(asked, str):
            asked = Conversation.ask(asked)
        self.inputs = engine.processor(asked) if isinstance(asked, Conversation) else asked
        self.sampling = sampling
        self.events: list[Event | MllamaError] = []
        self.begun, self.over = threading.Event(), threading.Event()
        self.on_token: Callable[[], object] = lambda: None
        self.handle: Handle | None = None
        self._loop = loop

    def submit(self) -> "Caller":
        self.handle = self._loop.submit(self.inputs, self.sampling, self._hear)
        return self

    def cancel(self) -> None:
        assert self.handle is not None
        self._loop.cancel(self.handle)

    def _hear(self, event: Event | MllamaError) -> None:
        if self.over.is_set():
            event = MllamaError(f"an event after the last one: {event}")
        self.events.append(event)
        if isinstance(event, Token):
            self.begun.set()
            self.on_token()
        if isinstance(event, (GenerationStats, MllamaError)):
            self.begun.set()
            self.over.set()

    @property
    def tokens(self) -> list[Token]:
        return [event for event in self.events if isinstance(event, Token)]

    def wait(self) -> "Caller":
        assert self.over.wait(PATIENCE), f"no last event after {self.events}"
        return self

    def answer(self) -> list[Token]:
        """Wait for the whole answer and return its tokens."""
        assert isinstance(self.wait().events[-1], GenerationStats), self.events[-1]
        return self.tokens

    def error(self) -> MllamaError:
        assert isinstance(self.wait().events[-1], MllamaError), self.events[-1]
        return self.events[-1]


@contextmanager
def running(engine: Engine, *, slots: int = 4, max_queue: int = 256) -> Iterator[EngineLoop]:
    loop = EngineLoop(engine.model, slots=slots, max_queue=max_queue)
    try:
        yield loop
    finally:
        loop.close()


def settled(loop: EngineLoop) -> LoopStats:
    """Return the stats once nothing runs or waits."""
    quiet = threading.Event()
    for _ in range(int(PATIENCE / 0.002)):
        stats = loop.stats()
        if not stats.running and not stats.waiting:
            return stats
        quiet.wait(0.002)
    pytest.fail(f"{loop.stats()} and nobody asks")
