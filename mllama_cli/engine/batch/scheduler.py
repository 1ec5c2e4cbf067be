"""Continuous batching: admit requests into free slots, step them, reply, and shrink when memory runs out."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mllama_cli.core.errors import MemoryShortageError, MllamaError
from mllama_cli.engine.batch.admission import Admission, RequestQueue
from mllama_cli.engine.batch.capacity import automatic_slots, image_cache_bytes
from mllama_cli.engine.batch.request import BatchReply, BatchRequest
from mllama_cli.engine.batch.slots import Prompt, Slots
from mllama_cli.engine.completion import Completion
from mllama_cli.engine.device import batch_stream, free_bytes, is_out_of_memory, make_current
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.sampling import ChosenToken


@dataclass(frozen=True)
class _Running:
    """A request in a slot."""

    request: BatchRequest
    started: float
    answer: Completion
    chosen: list[ChosenToken] = field(default_factory=list)
    """Those of ``answer.ids``, if log-probabilities are asked for."""


class Scheduler:
    """Answer requests in ``slots`` slots (None: as many as memory allows)."""

    def __init__(
        self,
        model: LoadedModel,
        requests: Iterable[BatchRequest | None],
        slots: int | None,
        refill: bool,
        on_slots: Callable[[int], None],
    ) -> None:
        self._model = model
        self._size = slots
        self._max_size = max(1, len(requests)) if isinstance(requests, Sized) else None
        self._refill = refill
        self._on_slots = on_slots
        self._replies: deque[BatchReply] = deque()
        self._admission = Admission(model, RequestQueue(requests), refill=refill, replies=self._replies)
        self._slots: Slots | None = None
        self._running: list[_Running] = []
        """The requests of the busy slots, in order."""
        self._draining = False
        """Whether free slots stay empty until all answers have ended."""
        self._tried_alone: BatchRequest | None = None
        self._stream: torch.cuda.Stream | None = None

    def run(self) -> Generator[BatchReply]:
        make_current(self._model.device)
        while self._running or not self._admission.empty:
            self._run_or_shrink(self._advance)
            while self._replies:
                yield self._replies.popleft()

    def _advance(self) -> None:
        """Admit requests or step those in slots; return early if there is a reply to yield."""
        if self._slots is None and not self._initialise():
            return
        assert self._slots is not None
        # With a single slot, don't prefetch, so that running out of memory is attributable to its request.
        if self._slots.count > 1 or not self._running:
            self._admission.prefetch(self._slots.count)
        if not self._running:
            self._draining = False
        if not self._replies and self._should_prefill(self._slots):
            self._admit(self._slots)
        if self._replies or not self._running:
            return
        if not (self._admission.prefetches and self._should_prefill(self._slots)):
            self._take_tokens(0, self._slots.step([running.answer.ids[-1] for running in self._running]))
            self._model.decoder.batch_stepped()
            self._draining = not self._refill

    def _initialise(self) -> bool:
        """Allocate slots, as many as suit the first request; return whether there is one yet."""
        queue = self._admission.queue
        request = queue.pull()
        if request is None:
            return False
        queue.requeue([request])
        if request.inputs.images:
            for _ in self._model.load(vision=True):
                pass
        if self._size is None:
            sampling = request.sampling or self._model.default_sampling()
            inputs = request.inputs
            slots = automatic_slots(self._model, len(inputs.ids), len(inputs.images), sampling.max_tokens)
            self._size = min(slots, self._max_size or slots)
            self._on_slots(self._size)
        self._admission.images.limit = image_cache_bytes(free_bytes(self._model.device))
        self._slots = Slots(self._model, self._size)
        return True

    def _should_prefill(self, slots: Slots) -> bool:
        return not self._draining and self._admission.should_prefill(slots.count, slots.free)

    def _admit(self, slots: Slots) -> None:
        """Fill the free slots in prefill batches; on a GPU only one, so that more images are prefetched."""
        while slots.free:
            rejected = self._admission.collect(slots.count, slots.free)
            if self._admission.batch:
                self._prefill(slots)
            elif not rejected:
                return
            if self._admission.prefetches or self._replies:
                return

    def _prefill(self, slots: Slots) -> None:
        """Prefill the admitted requests and take their first tokens."""
        started, model, images = time.perf_counter(), self._model, self._admission.images
        prompts = []
        for request in self._admission.batch:
            digests = tuple(image.digest for image in request.inputs.images)
            prompts.append(Prompt(request.inputs.ids, digests, tuple(map(images.get, digests))))
        logits = slots.fill(prompts)
        first = len(self._running)
        admitted = []
        for slot, request in enumerate(self._admission.batch, first):
            sampling, inputs = request.sampling or model.default_sampling(), request.inputs
            slots.sampler.admit(slot, sampling, inputs.ids)
            room = model.max_context - len(inputs.ids)
            answer = Completion(model.processor.tokenizer, sampling, model.eos, room, inputs.prefill)
            admitted.append(_Running(request, started, answer))
        self._running += admitted
        self._admission.admitted()  # only now, so that running out of memory before withdraws them
        self._take_tokens(first, logits)

    def _take_tokens(self, first: int, logits: Tensor) -> None:
        """Choose the next tokens of the slots from ``first`` on; release those whose answers end."""
        assert self._slots is not None
        ended = []
        for slot, token in enumerate(self._slots.sampler.choose(logits, first), first):
            running = self._running[slot]
            if isinstance(token, MllamaError):
                self._replies.append(BatchReply.failed(running.request, token))
                ended.append(slot)
                continue
            running.answer.push(token.id)
            if token.logprob is not None and len(running.answer.ids) > len(running.chosen):
                running.chosen.append(token)
            if running.answer.finish_reason:
                self._reply(running)
                ended.append(slot)
        for slot in reversed(ended):  # from the back, since the last slot moves into a released one
            self._slots.release(slot)
            self._running[slot] = self._running[-1]
            self._running.pop()

    def _reply(self, running: _Running) -> None:
        request, answer = running.request, running.answer
        assert answer.finish_reason
        self._replies.append(
            BatchReply(
                request.key,
                answer.text,
                tuple(answer.ids),
                answer.finish_reason,
                len(request.inputs.ids),
                time.perf_counter() - running.started,
                logprobs=tuple(running.chosen),
            )
        )

    def _run_or_shrink(self, work: Callable[[], None]) -> None:
        """Run ``work``; when memory runs out, continue with fewer slots."""
        try:
            with self._step_stream():
                work()
            return
        except (RuntimeError, MemoryError) as error:
            if self._admission.queue.failed or self._size is None or not is_out_of_memory(error):
                raise
        self._shrink()  # not in the handler, where the traceback still holds tensors

    def _step_stream(self) -> AbstractContextManager[object]:
        """Return a context in which, on a GPU, a stream with a higher priority than the images' is current."""
        if self._stream is None and self._model.device.type == "cuda":
            self._stream = batch_stream(self._model.device, "step")
            self._stream.wait_stream(torch.cuda.current_stream(self._model.device))
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _shrink(self) -> None:
        """Requeue all requests for fewer slots. A request alone in a single slot is tried twice."""
        assert self._size
        in_flight = [running.request for running in self._running] + self._admission.withdraw()
        self._running, self._slots = [], None
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        queue = self._admission.queue
        if not in_flight and (request := queue.pull()):
            in_flight = [request]
        alone = self._size == 1
        if alone and in_flight and in_flight[0] is self._tried_alone:
            error = MemoryShortageError(
                "There is not enough memory to answer this, even alone",
                "Close other programs, ask with fewer images or less text, or use a smaller --dtype.",
            )
            self._replies.append(BatchReply.failed(in_flight.pop(0), error))
        elif self._size > 1:
            self._size = self._size * 3 // 4
            self._on_slots(self._size)
        self._tried_alone = in_flight[0] if alone and in_flight else None
        queue.requeue(in_flight)
