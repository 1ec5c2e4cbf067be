"""Events from the engine's thread in asyncio: all come, in order, and those that wait come together."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from mllama_cli.core.errors import MllamaError, QueueFullError
from mllama_cli.core.events import Event, GenerationStats, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.loop import EngineLoop
from mllama_cli.processing.processor import ModelInputs
from mllama_cli.serving.answer import Answers, Waker

END = GenerationStats("stop", 1, 0, 0, 1, 0.0, 0.0, 0.0)
REQUEST = (ModelInputs((1,)), Sampling())


class Loop:
    """An engine loop whose events the test sends itself; it takes ``room`` requests."""

    def __init__(self, room: int = 10) -> None:
        self.room = room
        self.listeners: list[Callable[[Event | MllamaError], None]] = []
        self.cancelled: list[int] = []

    def submit(self, inputs: Any, sampling: Any, listener: Any) -> int:
        if len(self.listeners) == self.room:
            raise QueueFullError("full")
        self.listeners.append(listener)
        return len(self.listeners) - 1

    def cancel(self, handle: int) -> None:
        self.cancelled.append(handle)


def answers(loop: Loop, count: int) -> Answers:
    return Answers(cast(EngineLoop, loop), Waker(), [REQUEST] * count)


@pytest.mark.anyio
async def test_no_event_of_a_fast_thread_is_lost() -> None:
    loop = Loop()
    both = answers(loop, 2)
    count = 20_000

    def tell() -> None:
        for number in range(count):
            loop.listeners[number % 2](Token(number, ""))
        for listener in loop.listeners:
            listener(END)

    telling = asyncio.create_task(asyncio.to_thread(tell))
    heard: list[tuple[int, Event]] = []
    async for batch in both.batches():
        heard += batch
    await telling
    ids = [(index, event.id) for index, event in heard if isinstance(event, Token)]
    assert ids == [(number % 2, number) for number in range(count)]


@pytest.mark.anyio
async def test_what_waits_comes_together_and_an_error_comes_after_it() -> None:
    loop = Loop()
    one = answers(loop, 1)
    (listener,) = loop.listeners
    for number in range(3):
        listener(Token(number, ""))
    listener(MllamaError("broken"))
    batches = one.batches()
    assert len(await anext(batches)) == 3
    with pytest.raises(MllamaError, match="broken"):
        await anext(batches)
    assert loop.cancelled == [0]


@pytest.mark.anyio
async def test_closing_cancels_all_and_so_does_a_queue_that_takes_only_some() -> None:
    loop = Loop()
    several = answers(loop, 3)
    loop.listeners[1](Token(1, ""))
    batches = several.batches()
    await anext(batches)
    await batches.aclose()
    assert loop.cancelled == [0, 1, 2]
    full = Loop(room=2)
    with pytest.raises(QueueFullError):
        answers(full, 3)
    assert full.cancelled == [0, 1]
