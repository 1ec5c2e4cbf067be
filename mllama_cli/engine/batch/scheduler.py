"""Continuous batching: admit requests, read their prompts, step them, and report their tokens as they come."""

import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import GenerationStats, Prefilled, Token
from mllama_cli.engine.batch.admission import Admission
from mllama_cli.engine.batch.capacity import Memory
from mllama_cli.engine.batch.prefill import Prompt, PromptReader
from mllama_cli.engine.batch.prefix_cache import CachedText
from mllama_cli.engine.batch.reading import Reading
from mllama_cli.engine.batch.request import Request
from mllama_cli.engine.batch.slots import Slots
from mllama_cli.engine.batch.watched import tiles_between_steps
from mllama_cli.engine.device import batch_stream, is_out_of_memory, make_current
from mllama_cli.engine.forward import MAX_PREFILL_BATCH
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.sampling import ChosenToken, PendingTokens
from mllama_cli.kernels.sdpa import has_decode_attention

MAX_PARTS = 10
"""More than the parts in which a GPU encodes an image."""

CLAIMED_BYTES = 16 * 2**30
"""Bytes of keys and values for which a server takes memory when it starts."""

STEPS_AHEAD = {"cpu": 0, "cuda": 1}
"""Steps launched before the tokens of the step before are read, so that a GPU never waits for the host."""


class Scheduler:
    """Answer requests in slots, driven by ``advance``.

    ``most`` is the number of requests in slots at once; it shrinks when memory runs out.
    """

    def __init__(self, model: LoadedModel, memory: Memory, *, max_context: int | None = None) -> None:
        make_current(model.device)
        self.most = memory.slots
        self.active: list[Request] = []
        """The requests of the busy slots, in order."""
        self._failures: deque[tuple[Request, MllamaError]] = deque()
        limit = min(max_context or model.max_context, model.max_context)
        self.admission = Admission(model, memory, limit, self.active, self._failures)
        self._model, self._memory = model, memory
        self._slots, self._reading = self._make_slots()
        self._launched: deque[tuple[list[Request], PendingTokens]] = deque()
        """Tokens that are not read yet, in order of launch."""
        self._tried_alone: Request | None = None
        self._claimed = False
        self._stream: torch.cuda.Stream | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        waits = self.admission.waiting or self.admission.admitted
        return not (waits or self.active or self._launched or self._failures)

    @property
    def requests(self) -> list[Request]:
        """All requests that have not ended."""
        return [*self.active, *self.admission.admitted, *self.admission.waiting]

    @property
    def room(self) -> int:
        """The number of requests that ``add`` takes before they wait for others; below zero if some wait."""
        waiting = len(self.admission.waiting) + len(self.admission.admitted)
        return self.most - len(self.active) - waiting

    def add(self, request: Request) -> None:
        self.admission.waiting.append(request)

    def prepare(self) -> bool:
        """Do a part of what later requests would have to wait for; return whether there was any."""
        try:
            with self._on_stream():
                if self._model.vision_loaded and self._model.vision.prepare():
                    return True
                return self._claim_memory() or self._slots.prepare() or self._reading.prepare()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return False

    def _claim_memory(self) -> bool:
        """Let torch take memory from the driver: all work waits while it does, so better now than between steps."""
        if self._claimed or self._model.device.type != "cuda":
            return False
        self._claimed = True
        torch.empty(min(self._memory.limit // 2, CLAIMED_BYTES), dtype=torch.uint8, device=self._model.device)
        return True

    def cancel(self, request: Request) -> None:
        """Stop a request, wherever it is, and free what it holds; its listener hears nothing more."""
        request.cancelled = True
        with self._on_stream():
            self._remove(request)

    def _remove(self, request: Request) -> None:
        if request in self.active:
            self._release(self.active.index(request))
        self._reading.forget(request)
        self.admission.remove(request)

    def advance(self) -> None:
        """Do the next piece of work: at most one step, one prefill, and on a CPU one layer of an image."""
        out_of_memory = False
        try:
            with self._on_stream():
                self._advance()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            out_of_memory = True
        if out_of_memory:  # not in the handler, where the traceback still holds tensors
            with self._on_stream():
                self._retreat()
        self._report_failures()

    def _advance(self) -> None:
        self.admission.admit(self.most - len(self.active))
        self._encode()
        stepped = self._step()
        while len(self._launched) > (STEPS_AHEAD[self._model.device.type] if stepped else 0):
            self._release_all(self._read_tokens())
        self._prefill()

    def _watched(self) -> bool:
        return any(request.streams for request in self.active)

    def _encode(self) -> None:
        """Encode images: on a CPU one layer, and on a GPU more the more requests wait.

        Nothing overlaps with steps: both would take as much longer, and a step might wait for several images.
        """
        tiles = tiles_between_steps(
            self._model.device.type, self.admission.lacking, watched=self._watched(), has_read=self._reading.has_read
        )
        for _ in range(MAX_PREFILL_BATCH * MAX_PARTS):
            if tiles <= 0 or not (encoded := self.admission.encode()):
                return
            tiles -= encoded

    def _step(self) -> bool:
        """Launch a step of the busy slots, unless all their answers will have ended; return whether it did."""
        if all(request.answer and request.launched >= request.answer.budget for request in self.active):
            return False
        # Constraints choose by the tokens before. The host reads those while the device computes the step, but reports
        # them when the choice is launched, so that the device does not wait for that.
        constrained = any(request.constraint is not None for request in self.active)
        pending = self._slots.step(self._await_tokens) if constrained else self._slots.step()
        for request in self.active:
            request.launched += 1
        self._launched.append((list(self.active), pending))
        self._model.decoder.batch_stepped()
        return True

    def _await_tokens(self) -> None:
        """Wait for all launched tokens, of which constraints take note."""
        for _, pending in self._launched:
            pending.wait()

    def _prefill(self) -> None:
        """Read prompts for free slots."""
        read = self._reading.advance(self.most, len(self.active), watched=self._watched())
        if read is not None:
            self._start(*read)

    def _start(self, prompts: list[Prompt], logits: Tensor) -> None:
        """Give prompts that are read their slots, and choose their first tokens."""
        first = self._slots.busy
        images = self.admission.images
        for prompt in prompts:
            request = prompt.request
            assert request.caches is not None
            digests = request.seen_at_the_end
            request.caches.seen = images.get_group(digests) if digests else None
            self._slots.admit(request.caches, request.sampling, request.ids, request.constraint)
        pending = self._slots.choose(logits, first)
        for prompt in prompts:
            prompt.request.launched = 1
            if prompt.request.streams:  # else it may start again
                prompt.request.tiles = ()
            self.admission.count(prompt.request)
            self.admission.admitted.remove(prompt.request)
            self.active.append(prompt.request)
        self._launched.append(([prompt.request for prompt in prompts], pending))

    def _read_tokens(self) -> list[Request]:
        """Read the oldest launched tokens and report them; return the requests that ended, whose slots to release."""
        requests, pending = self._launched.popleft()
        ended: list[Request] = []
        for request, token in zip(requests, pending.wait(), strict=True):
            if (
                request.cancelled
                or request.answer is None
                or request.answer.finish_reason
                or request not in self.active
            ):
                continue  # it ended while this step was under way
            if isinstance(token, MllamaError):
                self._failures.append((request, token))
                ended.append(request)
            elif self._report(request, token):
                ended.append(request)
        return ended

    def _release_all(self, requests: list[Request]) -> None:
        for request in requests:
            self._release(self.active.index(request))

    def _report(self, request: Request, token: ChosenToken) -> bool:
        """Report a token; return whether it ends the answer."""
        answer = request.answer
        assert answer is not None
        if not request.first_token:
            request.first_token = time.perf_counter()
            if request.inputs.prefill:
                request.report(Prefilled(request.inputs.prefill))
        piece = answer.push(token.id)
        if token.id not in self._model.eos:
            request.report(Token(token.id, piece, token.logprob, token.top_logprobs))
        elif piece:
            request.report(Token(token.id, piece))
        if token.logprob is not None and len(answer.ids) > len(request.chosen):
            request.chosen.append(token)
        if not answer.finish_reason:
            return False
        now = time.perf_counter()
        begun = request.encoded or request.first_token
        request.report(
            GenerationStats(
                finish_reason=answer.finish_reason,
                prompt_tokens=len(request.ids),
                cached_tokens=request.cached,
                images=len(request.digests),
                completion_tokens=len(answer.ids),
                encode_seconds=begun - request.started if request.new_images else 0.0,
                prefill_seconds=request.first_token - (begun if request.new_images else request.started),
                decode_seconds=now - request.first_token,
            )
        )
        return True

    def _release(self, slot: int) -> None:
        """Free a slot; what its caches hold may serve later prompts."""
        request = self.active[slot]
        self._slots.release(slot)
        self.active[slot] = self.active[-1]
        self.active.pop()
        assert request.caches is not None
        assert request.answer is not None
        cache = request.caches.cache
        ids = (*request.ids, *request.answer.ids)[: cache.lengths[0]]
        self.admission.prefixes.keep(CachedText(ids, request.digests, cache))
        request.caches = None

    def _retreat(self) -> None:
        """Make do with less memory: forget caches, and start requests again that nobody watches, fewer at once.

        A request that fails alone twice gets an error; so does the latest of those that are watched, if there is
        nothing else to free.
        """
        while self._slots.busy > len(self.active):  # memory ran out while they were admitted
            self._slots.release(self._slots.busy - 1)
        while self._launched:
            self._release_all(self._read_tokens())
        self._reading.forget()
        admission, held = self.admission, self.admission.cache_bytes
        in_flight = [*self.active, *admission.admitted] or list(admission.waiting)[:1]
        restarted = [request for request in self.active if not request.streams]
        withdrawn = bool(restarted or admission.admitted)
        for request in restarted:
            self._release(self.active.index(request))
        admission.withdraw(restarted)
        if not self.active:
            del self._slots, self._reading  # captured graphs hold memory too
            self._slots, self._reading = self._make_slots()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        alone = in_flight[0] if len(in_flight) == 1 else None
        if alone is not None and alone is self._tried_alone:
            self._give_up(alone)
        elif alone is None and not withdrawn and admission.cache_bytes == held:
            self._give_up(max(self.active, key=lambda request: request.submitted))
        elif len(in_flight) > 1:
            self.most = max(1, min(self.most, len(in_flight)) * 3 // 4)
        self._tried_alone = alone

    def _give_up(self, request: Request) -> None:
        self._remove(request)
        self._failures.append((request, self._memory.shortage(len(request.ids))))

    def _make_slots(self) -> tuple[Slots, Reading]:
        slots, reader = make_slots(self._model, self._memory)
        return slots, Reading(self._model, self.admission, reader)

    def _report_failures(self) -> None:
        while self._failures:
            request, error = self._failures.popleft()
            if not request.cancelled:
                request.report(error)

    def _on_stream(self) -> AbstractContextManager[object]:
        """Return a context in which a GPU works on the batch's stream, where steps go before the work on images."""
        if self._model.device.type != "cuda":
            return nullcontext()
        if self._stream is None:
            self._stream = batch_stream(self._model.device, "step")
            self._stream.wait_stream(torch.cuda.current_stream(self._model.device))
        return torch.cuda.stream(self._stream)


def make_slots(model: LoadedModel, memory: Memory) -> tuple[Slots, PromptReader]:
    """Return slots and what reads prompts, by captured graphs where our kernels run and there is memory for them."""
    if not has_decode_attention(model.device, model.dtype, model.config.text_config.head_dim):
        return Slots(model, memory.slots), PromptReader(model)
    from mllama_cli.engine.batch.captured_slots import CapturedSlots

    slots = CapturedSlots(model, memory.slots)
    if not memory.captures_passes:
        return slots, PromptReader(model)
    from mllama_cli.engine.batch.captured_prompts import CapturedPromptReader

    return slots, CapturedPromptReader(model)
