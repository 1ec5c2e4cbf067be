"""Answer requests from any thread: a thread owns the model, and events come to each request's listener."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mllama_cli.core.errors import ContextLengthError, EngineError, MllamaError, QueueFullError, ShuttingDownError
from mllama_cli.core.events import Event
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.capacity import MAX_SERVED_SLOTS, Memory
from mllama_cli.engine.batch.request import Request
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.device import make_current
from mllama_cli.engine.model import LoadedModel
from mllama_cli.processing.processor import ModelInputs

T = TypeVar("T")

MAX_QUEUE = 256
"""Requests that wait for a slot; more are refused."""

PREPARE_AFTER_SECONDS = 0.5
"""Time without a request before the loop prepares for more: who asks again at once need not wait for it."""

Listener = Callable[[Event | MllamaError], None]
"""Called on the loop's thread with each event; GenerationStats or an error is the last. Must return at once.

If it raises, its request is cancelled."""


@dataclass(frozen=True)
class LoopStats:
    """What a loop is doing. Counters only grow."""

    slots: int
    running: int
    """Requests in slots."""
    waiting: int
    """Requests without a slot, those whose images are encoded or whose prompt is read included."""
    images_encoded: int = 0
    image_cache_hits: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were still there."""
    cache_bytes: int = 0
    """Bytes of keys and values in use or kept for reuse."""


class Handle(Request):
    """A submitted request."""

    def __init__(
        self, inputs: ModelInputs, sampling: Sampling, listener: Listener, cancel: Callable[["Handle"], None]
    ) -> None:
        super().__init__(inputs, sampling)
        self._listener, self._cancel = listener, cancel

    def report(self, event: Event | MllamaError) -> None:
        if self.cancelled:
            return
        try:
            self._listener(event)
        except Exception:  # a fault of the caller's, which must not end the other requests
            logging.getLogger(__name__).exception("A listener failed, so its request is cancelled")
            self._cancel(self)


class EngineLoop:
    """Answer requests on a thread of its own, from ``submit`` until GenerationStats or an error.

    An answer depends on its own request alone: in float32 token for token, in 16 bits up to rounding. The weights must
    be loaded; those for images are loaded with the first image.

    Args:
        slots: answers at once; None for as many as are useful.
        max_context: tokens of a prompt and its answer together.
        max_queue: requests without a slot; more are refused.
        on_prepared: called on the loop's thread when nothing is left to prepare ahead of requests, which the loop does
            before the first, and when it has had none for PREPARE_AFTER_SECONDS. Must return at once.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        slots: int | None = None,
        max_context: int | None = None,
        max_queue: int = MAX_QUEUE,
        on_prepared: Callable[[], object] = lambda: None,
    ) -> None:
        self.model = model
        self.max_context = min(max_context or model.max_context, model.max_context)
        self._max_queue = max_queue
        self._memory = Memory.of(model, slots or MAX_SERVED_SLOTS[model.device.type], serves=True)
        self._new: deque[Handle] = deque()
        self._cancelled: deque[Handle] = deque()
        self._work: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._stats = self._before = LoopStats(self._memory.slots, 0, 0)
        """``_before`` has the counters of schedulers that failed."""
        self._on_prepared = on_prepared
        self._prepared = False
        self.fault: EngineError | None = None
        """Why the loop has ended by itself; it takes no request then."""
        self._closing = self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, inputs: ModelInputs, sampling: Sampling, listener: Listener) -> Handle:
        """Queue a request.

        Raise QueueFullError, ShuttingDownError, EngineError or, if the request can never fit, ContextLengthError or
        MemoryShortageError.
        """
        self._require_fit(inputs, sampling)
        handle = Handle(inputs, sampling, listener, self.cancel)
        with self._changed:
            if self._closing:
                raise self.fault or _shutting_down()
            if len(self._new) + self._stats.waiting >= self._max_queue:
                raise QueueFullError(f"{self._max_queue} requests are waiting already", "Ask again in a moment.")
            self._new.append(handle)
            self._changed.notify()
        return handle

    def cancel(self, handle: Handle) -> None:
        """Stop a request, wherever it is; its listener hears nothing more. Harmless for one that has ended."""
        handle.cancelled = True
        with self._changed:
            self._cancelled.append(handle)
            self._changed.notify()

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Call a function that uses the model on the loop's thread, between two steps.

        Raise ShuttingDownError or EngineError.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise self.fault or _shutting_down()
            self._work.append((work, future))
            self._changed.notify()
        return future

    def stats(self) -> LoopStats:
        with self._changed:
            return replace(self._stats, waiting=self._stats.waiting + len(self._new))

    def close(self, grace: float = 0.0) -> None:
        """Refuse what has no slot (ShuttingDownError), let running answers end for ``grace`` seconds, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(grace)
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _require_fit(self, inputs: ModelInputs, sampling: Sampling) -> None:
        length = len(inputs.ids)
        if length >= self.max_context:
            raise ContextLengthError(
                f"The conversation is {length} tokens long, {length - self.max_context + 1} more than fit with an "
                f"answer (the context is {self.max_context})",
                "Shorten the text or start a new conversation.",
            )
        budget = min(sampling.max_tokens, self.max_context - length)
        images = len({image.digest for image in inputs.images}) * self._memory.image_bytes
        if self._memory.text_bytes(length + budget) + images > self._memory.limit:
            raise self._memory.shortage(length)

    def _run(self) -> None:
        scheduler = None
        try:
            make_current(self.model.device)
            scheduler = self._new_scheduler()
            while not self._answer(scheduler):
                scheduler = self._new_scheduler()
        except Exception as error:  # such as a GPU that does nothing more in this process
            self._give_up(scheduler, error)

    def _answer(self, scheduler: Scheduler) -> bool:
        """Answer requests until the loop is closed; return False if a fault has made the scheduler unreliable."""
        prepare_at = math.inf if self._prepared else -math.inf
        self._count(scheduler)
        while True:
            with self._changed:
                while scheduler.idle and not (self._new or self._cancelled or self._work or self._closing):
                    pause = prepare_at - time.monotonic()
                    if pause <= 0:
                        break
                    self._changed.wait(min(pause, threading.TIMEOUT_MAX))
                for handle in self._new:
                    scheduler.add(handle)
                self._new.clear()
                cancelled, self._cancelled = self._cancelled, deque()
                work, self._work = self._work, deque()
                self._count(scheduler)  # so that nobody finds the queue empty before these have slots
            for handle in cancelled:
                scheduler.cancel(handle)
            for function, future in work:
                complete(future, function)
            if self._closing:
                unfinished = scheduler.requests if self._stopped else scheduler.requests[len(scheduler.active) :]
                for request in unfinished:
                    request.report(_shutting_down())
                    scheduler.cancel(request)
                if scheduler.idle:
                    return True
            try:
                if not scheduler.idle:
                    scheduler.advance()
                    if not self._prepared:
                        prepare_at = time.monotonic() + PREPARE_AFTER_SECONDS
                elif time.monotonic() >= prepare_at and not scheduler.prepare():
                    self._prepared, prepare_at = True, math.inf
                    self._on_prepared()
            except Exception as error:
                if scheduler.idle:
                    self._prepared = True  # it would fail again; what is not prepared is made when it is needed
                self._fail_all(scheduler, error)
                return False
            self._count(scheduler)

    def _new_scheduler(self) -> Scheduler:
        return Scheduler(self.model, self._memory, max_context=self.max_context)

    def _fail_all(self, scheduler: Scheduler, error: Exception) -> None:
        """Report a fault of ours, after which nothing in the scheduler can be relied on."""
        fault = MllamaError(f"The engine failed: {type(error).__name__}: {error}", "Ask again; please report this.")
        failed = scheduler.requests
        for request in failed:
            request.report(fault)
        for request in failed:
            request.reset()
            scheduler.admission.remove(request)
        self._before = self._stats

    def _give_up(self, scheduler: Scheduler | None, error: Exception) -> None:
        """Fail all requests, now and from now on."""
        with self._changed:
            self.fault = EngineError(
                f"The engine has failed: {type(error).__name__}: {error}", "Start it again; please report this."
            )
            self._closing = True
            waiting = [*self._new, *(scheduler.requests if scheduler is not None else ())]
            futures = [future for _, future in self._work]
            self._new.clear()
            self._work.clear()
        for request in waiting:
            request.report(self.fault)
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(self.fault)

    def _count(self, scheduler: Scheduler) -> None:
        admission = scheduler.admission
        self._stats = LoopStats(
            slots=scheduler.most,
            running=len(scheduler.active),
            waiting=len(admission.waiting) + len(admission.admitted),
            images_encoded=self._before.images_encoded + admission.images_encoded,
            image_cache_hits=self._before.image_cache_hits + admission.image_hits,
            cached_tokens=self._before.cached_tokens + admission.cached_tokens,
            cache_bytes=admission.cache_bytes,
        )


def _shutting_down() -> ShuttingDownError:
    return ShuttingDownError("The server is shutting down", "Ask again when it has started.")


def complete(future: "Future[T]", function: Callable[[], T]) -> None:
    """Call a function and give a future its result or its error, unless nobody waits for it any more."""
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)
