"""Which request gets a slot when: newcomers in, answers out, fewer slots when memory runs out."""

import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mllama_cli.core.errors import ContextLengthError, MemoryShortageError, MllamaError
from mllama_cli.core.events import FinishReason
from mllama_cli.engine import streams
from mllama_cli.engine.answer import Answer
from mllama_cli.engine.batch.capacity import (
    NEWCOMERS,
    automatic_slots,
    newcomers_at_once,
    remembered_bytes,
)
from mllama_cli.engine.batch.request import BatchReply, BatchRequest
from mllama_cli.engine.batch.slots import Prompt, Slots, fits_together
from mllama_cli.engine.device import is_out_of_memory, make_current
from mllama_cli.engine.picture_encoder import PictureEncoder
from mllama_cli.engine.sampling import ChosenToken
from mllama_cli.processing.image_processor import ImageTiles

if TYPE_CHECKING:
    from mllama_cli.engine.engine import Engine

AHEAD = {"cpu": 0, "cuda": NEWCOMERS}
"""Requests whose pictures are encoded before there is a slot for them: on a GPU that goes on beside the steps."""

TOGETHER = 4
"""Newcomers worth a prefill on a GPU while others are answered."""


@dataclass(frozen=True)
class _Running:
    """A request in a slot."""

    request: BatchRequest
    started: float
    answer: Answer
    chosen: list[ChosenToken] = field(default_factory=list)


class Scheduler:
    """Answers requests in ``count`` slots (None: as many as memory allows). Replies come as their answers end."""

    def __init__(
        self,
        engine: "Engine",
        requests: Iterable[BatchRequest | None],
        count: int | None,
        refill: bool,
        on_slots: Callable[[int], None],
    ) -> None:
        self.engine = engine
        self.count = count
        self.refill = refill
        self._on_slots = on_slots
        self._source = iter(requests)
        self._most = max(1, len(requests)) if isinstance(requests, Sized) else sys.maxsize
        self._source_ended = self._source_failed = False
        self._again: deque[BatchRequest] = deque()
        """Requests that are to be had before the source's."""
        self._ahead = AHEAD[engine.device.type]
        self._waiting: deque[BatchRequest] = deque()
        """Requests whose pictures are encoded, or being encoded, and that have no slot yet."""
        self._newcomers: list[BatchRequest] = []
        self._running: list[_Running] = []
        """In the order of the slots."""
        self._done: deque[BatchReply] = deque()
        self._slots: Slots | None = None
        self._encoder = PictureEncoder(engine, 0)
        self._tried_alone: BatchRequest | None = None
        self._stream: torch.cuda.Stream | None = None

    def run(self) -> Generator[BatchReply]:
        make_current(self.engine.device)
        stepped = False
        while True:
            self._attempt(self._look_ahead)
            stepped = stepped and bool(self._running)
            open_ = self.refill or not stepped
            if open_ and self._worth_filling():
                self._attempt(self._fill)
                yield from self._replies()
            if self._running and not (self._ahead and open_ and self._worth_filling()):
                self._attempt(self._step)
                stepped = True
            yield from self._replies()
            if not (self._running or self._again or self._waiting) and self._source_ended:
                return

    def _replies(self) -> Iterator[BatchReply]:
        while self._done:
            yield self._done.popleft()

    def _look_ahead(self) -> None:
        """Begin to encode the pictures of the requests that come next.

        Not beside the only slot: memory is short then, and whoever runs out of it must be alone to be told so.
        """
        if self.count == 1 and self._running:
            return
        while len(self._waiting) < min(self._ahead, self.count or 1) and not self._done:
            request = self._again.popleft() if self._again else self._pull()
            if request is None:
                return
            self._waiting.append(request)
            if not self._prepared(request):
                self._waiting.pop()

    def _worth_filling(self) -> bool:
        """Whether newcomers come before the next step.

        On a GPU several at a time, since to prefill one costs as much. As long as pictures are on their way to free
        slots nobody steps: the GPU is busy with them anyway, and a step costs hardly less for few than for many.
        """
        if not self._ahead:
            return True
        return bool(self._waiting) and (self._slots is None or self._slots.free >= self._group())

    def _group(self) -> int:
        """Newcomers that are prefilled together at least, if there will be that many."""
        least = min(TOGETHER, newcomers_at_once(self.count or 1)) if self.refill else 1
        return min(least, len(self._waiting))

    def _ready(self, request: BatchRequest) -> bool:
        return all(self._encoder.ready(image.digest) for image in request.inputs.images)

    def _fill(self) -> None:
        """Newcomers into all free slots, as many at a time as can be prefilled together; on a GPU one such group."""
        group = self._group()
        most = newcomers_at_once(self.count or 1) if self._ahead else NEWCOMERS
        while self._slots is None or self._slots.free:
            while request := self._next(group):
                self._newcomers.append(request)
                if not self._ahead and not self._prepared(request):
                    self._newcomers.pop()
                    break  # to hand out the reply
                if self._slots is not None and len(self._newcomers) == min(self._slots.free, most):
                    break
            if self._newcomers:
                self._start()
            elif not self._done:
                return
            if self._ahead or self._done:
                return  # to begin with further pictures, to hand out replies

    def _next(self, group: int) -> BatchRequest | None:
        """The next request, if it can be prefilled beside the newcomers; None where there is none now.

        The pictures of a ``group`` are waited for; those of more newcomers are not.
        """
        if self._ahead:
            known = bool(self._waiting) and (len(self._newcomers) < group or self._ready(self._waiting[0]))
            request, source = self._waiting.popleft() if known else None, self._waiting
        else:
            request, source = self._again.popleft() if self._again else self._pull(), self._again
        if request and self._newcomers:
            lengths = [len(other.inputs.ids) for other in (*self._newcomers, request)]
            if not fits_together(lengths):
                source.appendleft(request)
                return None
        return request

    def _prepared(self, request: BatchRequest) -> bool:
        """Encode a request's pictures; where it cannot be answered at all, that is its reply."""
        self._open(request)
        try:
            self._encoder.encode(self._tiles(request))
        except MllamaError as error:
            self._fail(request, error)
            return False
        return True

    def _pull(self) -> BatchRequest | None:
        if self._source_ended:
            return None
        try:
            return next(self._source)
        except StopIteration:
            self._source_ended = True
            return None
        except BaseException:
            self._source_failed = True  # the caller's own error, even if it is one of memory
            raise

    def _open(self, request: BatchRequest) -> None:
        """What the first request needs, and knows the size of."""
        if request.inputs.images and not self.engine.sees:
            for _ in self.engine.load_vision():
                pass
        if self.count is None:
            sampling = request.sampling or self.engine.default_sampling()
            lengths = len(request.inputs.ids), len(request.inputs.images), sampling.max_tokens
            self.count = min(automatic_slots(self.engine, *lengths), self._most)
            self._on_slots(self.count)
        if self._slots is None:
            self._encoder.limit = remembered_bytes(self.engine.device)
            self._slots = Slots(self.engine, self.count)

    def _tiles(self, request: BatchRequest) -> dict[str, ImageTiles]:
        """Tiles of the pictures that are not encoded yet, by digest. Raises what is wrong with the request."""
        limit, length = self.engine.config.text_config.max_position_embeddings, len(request.inputs.ids)
        if length >= limit:
            raise ContextLengthError(
                f"A conversation of the batch is {length} tokens long; this model's context is {limit}",
                "Shorten its text.",
            )
        images = request.inputs.images
        given = request.tiles or [None] * len(images)
        return {
            image.digest: tiles or self.engine.processor.tiles(image)
            for image, tiles in zip(images, given, strict=True)
            if image.digest not in self._encoder
        }

    def _start(self) -> None:
        """Prefill the newcomers, whose pictures are encoded, and take their first tokens."""
        assert self._slots is not None
        started = time.perf_counter()
        prompts = []
        for request in self._newcomers:
            digests = tuple(image.digest for image in request.inputs.images)
            prompts.append(Prompt(request.inputs.ids, digests, tuple(map(self._encoder.get, digests))))
        logits = self._slots.fill(prompts)
        self._encoder.trim({image.digest for request in self._waiting for image in request.inputs.images})
        admitted = []
        for row, request in enumerate(self._newcomers, len(self._running)):
            sampling = request.sampling or self.engine.default_sampling()
            ids = request.inputs.ids
            room = self.engine.config.text_config.max_position_embeddings - len(ids)
            self._slots.sampler.admit(row, sampling, ids)
            answer = Answer(self.engine.processor.tokenizer, sampling, self.engine.eos, room)
            admitted.append(_Running(request, started, answer))
        first = len(self._running)
        self._running += admitted
        self._newcomers = []  # only now: what runs out of memory before is given back once
        self._take_tokens(first, logits)

    def _step(self) -> None:
        assert self._slots is not None
        self._take_tokens(0, self._slots.step([running.answer.ids[-1] for running in self._running]))

    def _take_tokens(self, first: int, logits: Tensor) -> None:
        """Choose the next tokens of the slots from ``first`` on; those whose answers end become free."""
        assert self._slots is not None
        ended: list[tuple[int, FinishReason | MllamaError]] = []
        for slot, token in enumerate(self._slots.sampler.choose(logits, first), first):
            if end := self._push(self._running[slot], token):
                ended.append((slot, end))
                self._reply(self._running[slot], end)
        for slot, _ in reversed(ended):  # from the back, as the last slot moves into the one that is released
            self._slots.release(slot)
            self._running[slot] = self._running[-1]
            self._running.pop()

    def _push(self, running: _Running, token: ChosenToken | MllamaError) -> FinishReason | MllamaError | None:
        if isinstance(token, MllamaError):
            return token
        if token.logprob is not None:
            running.chosen.append(token)
        return running.answer.push(token.id)

    def _reply(self, running: _Running, end: FinishReason | MllamaError) -> None:
        request, answer = running.request, running.answer
        if isinstance(end, MllamaError):
            self._fail(request, end)
            return
        seconds = time.perf_counter() - running.started
        ids, prompt_tokens = tuple(answer.ids), len(request.inputs.ids)
        chosen = tuple(running.chosen[: len(ids)])  # the end-of-answer token belongs to no answer
        self._done.append(BatchReply(request.key, answer.text, ids, end, prompt_tokens, seconds, logprobs=chosen))

    def _fail(self, request: BatchRequest, error: MllamaError) -> None:
        self._done.append(BatchReply(request.key, prompt_tokens=len(request.inputs.ids), error=error))

    def _attempt(self, work: Callable[[], None]) -> None:
        """Do it; if memory runs out, go on with fewer slots."""
        try:
            with self._urgent():
                work()
            return
        except (RuntimeError, MemoryError) as error:
            if self._source_failed or self.count is None or not is_out_of_memory(error):
                raise
        self._retreat()  # not in the handler, where the traceback still holds tensors

    def _urgent(self) -> AbstractContextManager[object]:
        """On a GPU a stream that goes before the pictures'."""
        if self._stream is None and self.engine.device.type == "cuda":
            self._stream = streams.steps(self.engine.device)
            self._stream.wait_stream(torch.cuda.current_stream(self.engine.device))
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _retreat(self) -> None:
        """Give up all slots, put their requests back and have fewer slots. Alone, a request is tried twice."""
        in_flight = [running.request for running in self._running] + self._newcomers + list(self._waiting)
        assert self.count
        self._running, self._newcomers, self._slots = [], [], None
        self._waiting.clear()
        self._encoder.clear()
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()
        alone = self.count == 1
        if alone and in_flight[0] is self._tried_alone:
            error = MemoryShortageError(
                "There is not enough memory to answer this, even alone",
                "Close other programs, ask with fewer pictures or less text, or use a smaller --dtype.",
            )
            self._fail(in_flight.pop(0), error)
        elif self.count > 1:
            self.count = self.count * 3 // 4
            self._on_slots(self.count)
        self._tried_alone = in_flight[0] if alone and in_flight else None
        self._again.extendleft(reversed(in_flight))
