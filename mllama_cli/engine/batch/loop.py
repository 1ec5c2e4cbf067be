"""Answer requests from any thread: a thread owns the model, and events come to each request's listener."""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from mllama_cli.core.errors import MllamaError, QueueFullError, ShuttingDownError
from mllama_cli.core.events import Event
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.session import Session
from mllama_cli.processing.processor import ModelInputs

MAX_QUEUE = 256
"""Requests that wait for a slot; more are refused."""

Listener = Callable[[Event | MllamaError], None]
"""Called on the loop's thread with each event; GenerationStats or an error is the last. Must return at once."""


@dataclass(frozen=True)
class LoopStats:
    """What a loop is doing. Counters only grow."""

    slots: int
    running: int
    waiting: int
    images_encoded: int = 0
    image_cache_hits: int = 0
    cache_bytes: int = 0
    """Bytes of keys and values in use or kept for reuse."""


class Handle:
    """A submitted request."""

    def __init__(self, inputs: ModelInputs, sampling: Sampling, listener: Listener) -> None:
        self.inputs, self.sampling, self.listener = inputs, sampling, listener
        self.cancelled = False


class EngineLoop:
    """Answer requests on a thread of its own, from ``submit`` until GenerationStats or an error.

    The weights must be loaded; those for images are loaded with the first image.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        slots: int | None = None,
        max_context: int | None = None,
        max_queue: int = MAX_QUEUE,
    ) -> None:
        self.model = model
        self.max_context = min(max_context or model.max_context, model.max_context)
        self._slots, self._max_queue = slots or 1, max_queue
        self._waiting: deque[Handle] = deque()
        self._running: Handle | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, inputs: ModelInputs, sampling: Sampling, listener: Listener) -> Handle:
        """Queue a request. Raise QueueFullError, ShuttingDownError or, if it can never fit, ContextLengthError."""
        handle = Handle(inputs, sampling, listener)
        with self._changed:
            if self._closing:
                raise ShuttingDownError("The server is shutting down", "Ask again when it has started.")
            if len(self._waiting) >= self._max_queue:
                raise QueueFullError(f"{self._max_queue} requests are waiting already", "Ask again in a moment.")
            self._waiting.append(handle)
            self._changed.notify()
        return handle

    def cancel(self, handle: Handle) -> None:
        """Stop a request, wherever it is; its listener hears nothing more. Harmless for one that has ended."""
        with self._changed:
            handle.cancelled = True
            if handle in self._waiting:
                self._waiting.remove(handle)

    def stats(self) -> LoopStats:
        with self._changed:
            return LoopStats(self._slots, int(self._running is not None), len(self._waiting))

    def close(self, grace: float = 0.0) -> None:
        """Refuse what is queued (ShuttingDownError), let running answers end for ``grace`` seconds, then stop."""
        with self._changed:
            self._closing = True
            refused, self._waiting = list(self._waiting), deque()
            self._changed.notify()
        for handle in refused:
            handle.listener(ShuttingDownError("The server is shutting down", "Ask again when it has started."))
        self._thread.join(grace)
        if (running := self._running) is not None:
            self.cancel(running)
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._running = None
                while not self._waiting:
                    if self._closing:
                        return
                    self._changed.wait()
                self._running = handle = self._waiting.popleft()
            try:
                with closing(Session(self.model).stream_inputs(handle.inputs, handle.sampling)) as events:
                    for event in events:
                        if handle.cancelled:
                            break
                        handle.listener(event)
            except MllamaError as error:
                if not handle.cancelled:
                    handle.listener(error)
