"""Answers of the engine loop, as the events of asyncio."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import Event, GenerationStats
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.loop import EngineLoop, Handle, Listener
from mllama_cli.processing.processor import ModelInputs

EngineRequest = tuple[ModelInputs, Sampling]


class Waker:
    """Wakes readers from the engine's thread: once for all whose events come in one burst, as those of a step do."""

    def __init__(self) -> None:
        self._asyncio = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Event] = deque()

    def wake(self, reader: asyncio.Event) -> None:
        """Set ``reader`` in the event loop. Call it on the engine's thread alone."""
        self._waiting.append(reader)
        if len(self._waiting) == 1:  # else a call is on its way, and sets this one too
            with suppress(RuntimeError):  # the event loop has ended
                self._asyncio.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        while self._waiting:
            self._waiting.popleft().set()


class Answers:
    """The answers to several requests, which are submitted together and cancelled together.

    Events wait here until they are asked for; an answer's length bounds their number, so a slow client needs no limit
    of its own. ``heard`` has a listener for each request, which is called on the engine's thread.
    """

    def __init__(
        self,
        loop: EngineLoop,
        waker: Waker,
        requests: Sequence[EngineRequest],
        heard: Sequence[Listener] = (),
    ) -> None:
        self._loop, self._waker = loop, waker
        self._events: deque[tuple[int, Event | MllamaError]] = deque()
        self._arrived = asyncio.Event()
        self._running = len(requests)
        self._handles: list[Handle] = []
        try:
            for index, (inputs, sampling) in enumerate(requests):
                tell = heard[index] if heard else None
                self._handles.append(loop.submit(inputs, sampling, self._listener(index, tell)))
        except MllamaError:
            self.cancel()
            raise

    async def batches(self) -> AsyncGenerator[list[tuple[int, Event]], None]:
        """Yield all events that have come, with their request's index, until each request has its GenerationStats.

        Raise the first error; the other requests are then cancelled.
        """
        try:
            while self._running:
                await self._arrived.wait()
                self._arrived.clear()
                batch: list[tuple[int, Event]] = []
                failed: MllamaError | None = None
                while self._events:
                    index, event = self._events.popleft()
                    if isinstance(event, MllamaError):
                        failed = event
                        break
                    self._running -= isinstance(event, GenerationStats)
                    batch.append((index, event))
                if batch:
                    yield batch
                if failed is not None:
                    raise failed
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop what has not ended; harmless afterwards."""
        for handle in self._handles:
            self._loop.cancel(handle)
        self._handles.clear()

    def fail(self, error: MllamaError) -> None:
        """End the answers with an error, as a stopped engine tells them nothing. Call it in the event loop."""
        self._events.append((0, error))
        self._arrived.set()

    def _listener(self, index: int, tell: Callable[[Event | MllamaError], None] | None) -> Listener:
        def listen(event: Event | MllamaError) -> None:
            if tell is not None:
                tell(event)
            self._hear(index, event)

        return listen

    def _hear(self, index: int, event: Event | MllamaError) -> None:
        self._events.append((index, event))
        if len(self._events) == 1:  # else the reader has been woken, and takes this event too
            self._waker.wake(self._arrived)
