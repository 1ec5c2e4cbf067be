"""Requests for batches, what came of them, and what each of them is answered alone."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import Event, GenerationStats, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch import capacity
from mllama_cli.engine.batch.capacity import Memory
from mllama_cli.engine.batch.request import BatchReply, BatchRequest, Request
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.device import HEADROOM
from mllama_cli.engine.engine import Engine
from mllama_cli.processing.processor import ModelInputs
from tests.engine.conftest import picture

RED, WIDE, TALL, LARGE = picture(), picture("blue", (300, 60)), picture("green", (50, 160)), picture("red", (200, 220))
CONVERSATIONS = [
    Conversation.ask("Hello, what can you do for me today?"),
    Conversation.ask("What?", (RED,)),
    Conversation.ask("And what differs between these two, can you tell?", (RED, WIDE)),
    Conversation.ask("One", (TALL,)).with_assistant("ok").with_user("Two", (LARGE,)),
    Conversation.ask("", (LARGE,)),
    Conversation.ask("Hi"),
    Conversation.ask("A picture, then text alone.", (WIDE,)).with_assistant("Indeed.").with_user("And now?"),
]
LENGTHS = (3, 17, 1, 30, 8, 22, 5, 12, 2, 26, 9, 14, 1, 7)

_KNOWN: "WeakKeyDictionary[Engine, dict[Hashable, list[Token]]]" = WeakKeyDictionary()
"""Tokens that were answered alone, by prompt, images and sampling."""

MAX_ADVANCES = 20_000
"""More pieces of work than any test here needs: a scheduler that does them all is going round in circles."""


def requests_for(engine: Engine) -> list[BatchRequest]:
    """Each conversation twice, with other lengths of answer."""
    return [
        BatchRequest(key, engine.processor(CONVERSATIONS[key % len(CONVERSATIONS)]), sampling=Sampling(max_tokens=most))
        for key, most in enumerate(LENGTHS)
    ]


def tokens_alone(engine: Engine, inputs: ModelInputs, sampling: Sampling | None) -> list[Token]:
    """Return the tokens that a new session reports; each prompt is answered once for all tests of a module."""
    known = _KNOWN.setdefault(engine, {})
    key = (inputs.ids, tuple(image.digest for image in inputs.images), repr(sampling), engine.model.eos)
    if key not in known:
        events = engine.session().stream_inputs(inputs, sampling)
        known[key] = [event for event in events if isinstance(event, Token)]
    return known[key]


def alone(engine: Engine, request: BatchRequest) -> tuple[int, ...]:
    tokens = tokens_alone(engine, request.inputs, request.sampling)
    return tuple(token.id for token in tokens if token.id not in engine.model.eos)


def by_key(replies: Iterator[BatchReply]) -> dict[object, tuple[int, ...]]:
    answers = {}
    for reply in replies:
        assert reply.error is None, reply.error
        assert reply.key not in answers
        answers[reply.key] = reply.ids
    return answers


class Asked(Request):
    """A request that keeps its events, in order, and the order in which requests of ``ended`` end."""

    def __init__(
        self,
        engine: Engine,
        asked: Conversation | str,
        sampling: Sampling,
        *,
        streams: bool = True,
        ended: "list[Asked] | None" = None,
    ) -> None:
        conversation = Conversation.ask(asked) if isinstance(asked, str) else asked
        super().__init__(engine.processor(conversation), sampling, streams=streams)
        self.events: list[Event | MllamaError] = []
        self._ended = ended if ended is not None else []

    def report(self, event: Event | MllamaError) -> None:
        assert not self.over, "an event after the last one"
        self.events.append(event)
        if self.over:
            self._ended.append(self)

    @property
    def over(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], (GenerationStats, MllamaError))

    @property
    def tokens(self) -> list[Token]:
        return [event for event in self.events if isinstance(event, Token)]

    @property
    def stats(self) -> GenerationStats:
        assert isinstance(self.events[-1], GenerationStats), self.events[-1]
        return self.events[-1]

    @property
    def error(self) -> MllamaError | None:
        return self.events[-1] if self.events and isinstance(self.events[-1], MllamaError) else None

    def answers_as_alone(self, engine: Engine) -> bool:
        return self.tokens == tokens_alone(engine, self.inputs, self.sampling)


def memory_of(engine: Engine, slots: int, limit: int | None = None) -> Memory:
    """Return the memory of a server, with ``limit`` bytes for keys and values."""
    memory = Memory.of(engine.model, slots, serves=True)
    return memory if limit is None else replace(memory, limit=limit, kept_images=limit // 4)


def limit_memory(monkeypatch: pytest.MonkeyPatch, engine: Engine, limit: int) -> None:
    """Leave ``limit`` bytes for keys and values in this test."""
    model = engine.model
    working = capacity.working_bytes(model.config, model.dtype.itemsize, model.prefill_chunk)
    monkeypatch.setattr(capacity, "free_bytes", lambda _: HEADROOM + working + limit)


def fail_once(
    monkeypatch: pytest.MonkeyPatch, where: type, what: str, call: int, error: BaseException | None = None
) -> list[int]:
    """Let one call of a method fail, counted from 1: as if memory ran out, unless another error is given.

    Return a list of the calls so far.
    """
    original, calls = getattr(where, what), list[int]()

    def failing(*arguments: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == call:
            raise error or torch.OutOfMemoryError("CUDA out of memory.")
        return original(*arguments)

    monkeypatch.setattr(where, what, failing)
    return calls


def advance_until(scheduler: Scheduler, done: Iterable[Request] = (), *, idle: bool = False) -> None:
    """Advance until all of ``done`` have a token or an end, or with ``idle`` until there is nothing to do."""
    waited = list(done)
    for _ in range(MAX_ADVANCES):
        if scheduler.idle if idle else all(isinstance(r, Asked) and (r.tokens or r.over) for r in waited):
            return
        scheduler.advance()
    pytest.fail("the scheduler works without getting anywhere")


def run(scheduler: Scheduler, *requests: Request) -> None:
    """Answer these requests and all others in the scheduler."""
    for request in requests:
        scheduler.add(request)
    advance_until(scheduler, idle=True)
