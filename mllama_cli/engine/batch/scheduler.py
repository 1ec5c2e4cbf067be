"""Continuous batching: admit requests, read their prompts, step them, and report their tokens as they come."""

import time
from collections import deque
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import GenerationStats, Prefilled, ReadingPrompt, Token
from mllama_cli.engine.batch.admission import Admission
from mllama_cli.engine.batch.capacity import MAX_PREFILL_BATCH, Memory, max_prefill_batch
from mllama_cli.engine.batch.prefill import Prompt, PromptReader, fits_together
from mllama_cli.engine.batch.prefix_cache import CachedText
from mllama_cli.engine.batch.request import Request
from mllama_cli.engine.batch.slots import Slots
from mllama_cli.engine.device import batch_stream, is_out_of_memory, make_current
from mllama_cli.engine.forward import PREFILL_CHUNK
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.sampling import ChosenToken, PendingTokens
from mllama_cli.kernels.sdpa import has_decode_attention

MIN_PREFILL_BATCH = 4
"""Requests to wait for before a prefill on a GPU interrupts the steps of others, if nobody watches them."""

SLICE_TOKENS = {"cpu": 64, "cuda": 128}
"""Prompt tokens between two steps of answers that somebody watches, or as many layers of more tokens as take as long.

Whole chunks keep a GPU busier, and cost the host less, than short ones would.
"""

LAYER_TOKENS = {"cpu": 1, "cuda": 400}
"""A layer counts as at least so many tokens: a GPU computes them while the host launches the layer."""

GROUP_TOKENS = 64
"""Tokens of several short prompts read together while somebody watches answers: what a captured graph reads."""

MAX_LAUNCHED_IMAGES = 2
"""Images that a GPU encodes or will encode while somebody watches answers: enough to keep it busy."""

CLAIMED_BYTES = 8 * 2**30
"""Bytes of keys and values, and as many of images, for which a server takes memory when it starts."""

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
        self._slots, self._reader = make_slots(model, memory.slots)
        self._launched: deque[tuple[list[Request], PendingTokens]] = deque()
        """Tokens that are not read yet, in order of launch."""
        self._prompt: Prompt | None = None
        """A long prompt that is read between steps."""
        self._reading: Generator[int, None, Tensor] | None = None
        self._prompt_turn = True
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
        """The number of requests that ``add`` takes before they wait for others."""
        waiting = len(self.admission.waiting) + len(self.admission.admitted)
        return max(0, self.most - len(self.active) + self.admission.prefetches - waiting)

    def add(self, request: Request) -> None:
        self.admission.waiting.append(request)

    def prepare(self) -> bool:
        """Do a part of what later requests would have to wait for; return whether there was any."""
        try:
            with self._on_stream():
                return self._claim_memory() or self._slots.prepare() or self._reader.prepare()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return False

    def _claim_memory(self) -> bool:
        """Let torch take memory from the driver: all work waits while it does, so better now than between steps."""
        if self._claimed or self._model.device.type != "cuda":
            return False
        self._claimed = True
        torch.empty(min(self._memory.limit // 4, CLAIMED_BYTES), dtype=torch.uint8, device=self._model.device)
        self.admission.images.claim_memory(min(self._memory.kept_images, CLAIMED_BYTES))
        return True

    def cancel(self, request: Request) -> None:
        """Stop a request, wherever it is, and free what it holds; its listener hears nothing more."""
        request.cancelled = True
        with self._on_stream():
            self._remove(request)

    def _remove(self, request: Request) -> None:
        if request in self.active:
            self._release(self.active.index(request))
        elif request in self.admission.admitted and self._prompt is not None and self._prompt.request is request:
            self._prompt = self._reading = None
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
        free = self.most - len(self.active)
        # With a single slot nothing is prefetched, so that running out of memory can only be due to its request.
        self.admission.admit(free + (self.admission.prefetches if self.most > 1 else 0))
        # On a GPU this only launches. What the host launches too far ahead, it has to wait for.
        most = MAX_LAUNCHED_IMAGES if self._watched() else MAX_PREFILL_BATCH
        while self.admission.images.launched < most and self.admission.encode():
            if self._model.device.type == "cpu":
                break
        stepped = self._step() if not self._prefill_first(free) else False
        while len(self._launched) > (STEPS_AHEAD[self._model.device.type] if stepped else 0):
            self._read_tokens()
        self._prefill()

    def _watched(self) -> bool:
        return any(request.streams for request in self.active)

    def _group(self) -> int:
        """Return how many requests a prefill on a GPU waits for: it takes as long for one as for several."""
        if self._model.device.type != "cuda" or not self.active or self._watched():
            return 1
        return max(1, min(MIN_PREFILL_BATCH, max_prefill_batch(self.most), len(self.admission.admitted)))

    def _prefill_first(self, free: int) -> bool:
        """Return whether free slots should be filled before the next step.

        If nobody watches, nothing steps while free slots wait for images: the GPU is busy encoding, and a step takes
        almost as long for few slots as for many.
        """
        if self._model.device.type != "cuda" or self._watched():
            return False
        return bool(self.admission.admitted) and free >= self._group()

    def _step(self) -> bool:
        """Launch a step of the busy slots, unless all their answers will have ended; return whether it did."""
        if all(request.answer and request.launched >= request.answer.budget for request in self.active):
            return False
        pending = self._slots.step()
        for request in self.active:
            request.launched += 1
        self._launched.append((list(self.active), pending))
        self._model.decoder.batch_stepped()
        return True

    def _prefill(self) -> None:
        """Read prompts for free slots: a slice of a long one, or all of several short ones, in turn."""
        self._prompt_turn = not self._prompt_turn
        most = GROUP_TOKENS if self._watched() else PREFILL_CHUNK
        if self._prompt is not None and (self._prompt_turn or not self._ready(most)):
            self._read_slice(self._prompt)
            return
        prompts = self._ready(most)
        if not prompts:
            return
        at_once = self._prompt is not None or self._reader.reads_at_once(prompts)
        if not at_once:
            self.admission.reuse(prompts[0].request)
            prompts = [Prompt(prompts[0].request)]
        now = time.perf_counter()
        for prompt in prompts:
            prompt.request.encoded = now
            prompt.request.report(ReadingPrompt(0, len(prompt.new)))
        if at_once:
            self._start(prompts, self._reader.read_together(prompts, self.admission.images))
        else:
            (self._prompt,) = prompts
            self._reading = self._prompt.read(self._model, self.admission.images, self._model.prefill_chunk)
            self._read_slice(self._prompt)

    def _ready(self, tokens: int) -> list[Prompt]:
        """Return the prompts to read next: the first whose images are there, and those that fit into one pass with it.

        A pass of several has up to ``tokens`` tokens.

        The first ``_group`` requests need not be there, as the device waits for their images.
        """
        free = self.most - len(self.active) - (self._prompt is not None)
        group = self._group()
        if free < group:
            return []
        most = max_prefill_batch(self.most) if self.admission.prefetches else MAX_PREFILL_BATCH
        prompts: list[Prompt] = []
        for request in self.admission.admitted:
            if len(prompts) == min(free, most):
                break
            if self._prompt is not None and self._prompt.request is request:
                continue
            waits = len(prompts) < group and not self._watched() and self.admission.launched(request)
            if not (waits or self.admission.ready(request)):
                continue
            prompt = Prompt(request)
            if prompts and not fits_together([len(other.new) for other in (*prompts, prompt)], tokens):
                break
            if self._prompt is not None and len(prompt.new) > tokens:
                continue  # one long prompt at a time
            prompts.append(prompt)
        return prompts

    def _read_slice(self, prompt: Prompt) -> None:
        """Read a chunk of a prompt or, if somebody watches other answers, some layers of it."""
        assert self._reading is not None
        tokens, before = 0, prompt.fed
        device = self._model.device.type
        most = SLICE_TOKENS[device] * self._model.config.text_config.num_hidden_layers
        while prompt.fed == before and not (self._watched() and tokens >= most):
            try:
                tokens += max(next(self._reading), LAYER_TOKENS[device])
            except StopIteration as end:
                self._prompt = self._reading = None
                self._start([prompt], end.value)
                break
        if prompt.fed > before:
            done = prompt.fed - prompt.request.cached
            prompt.request.report(ReadingPrompt(done, len(prompt.request.ids) - prompt.request.cached))

    def _start(self, prompts: list[Prompt], logits: Tensor) -> None:
        """Give prompts that are read their slots, and choose their first tokens."""
        first = self._slots.busy
        images = self.admission.images
        for prompt in prompts:
            request = prompt.request
            assert request.caches is not None
            digests = request.seen_at_the_end
            request.caches.seen = images.get_group(digests) if digests else None
            self._slots.admit(request.caches, request.sampling, request.ids)
        pending = self._slots.choose(logits, first)
        for prompt in prompts:
            prompt.request.launched = 1
            if prompt.request.streams:  # else it may start again
                prompt.request.tiles = ()
            self.admission.count(prompt.request)
            self.admission.admitted.remove(prompt.request)
            self.active.append(prompt.request)
        self._launched.append(([prompt.request for prompt in prompts], pending))

    def _read_tokens(self) -> None:
        """Read the oldest launched tokens, report them, and release the slots of answers that end."""
        requests, pending = self._launched.popleft()
        ended = []
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
        for request in ended:
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
        if answer.finish_reason != "stop":
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
            self._read_tokens()
        self._prompt = self._reading = None
        admission, held = self.admission, self.admission.cache_bytes
        in_flight = [*self.active, *admission.admitted] or list(admission.waiting)[:1]
        restarted = [request for request in self.active if not request.streams]
        withdrawn = bool(restarted or admission.admitted)
        for request in restarted:
            self._release(self.active.index(request))
        admission.withdraw(restarted)
        if not self.active:
            del self._slots, self._reader  # captured graphs hold memory too
            self._slots, self._reader = make_slots(self._model, self._memory.slots)
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


def make_slots(model: LoadedModel, count: int) -> tuple[Slots, PromptReader]:
    """Return slots and what reads prompts, by captured graphs where our kernels run."""
    if has_decode_attention(model.device, model.dtype, model.config.text_config.head_dim):
        from mllama_cli.engine.batch.captured_prompts import CapturedPromptReader
        from mllama_cli.engine.batch.captured_slots import CapturedSlots

        return CapturedSlots(model, count), CapturedPromptReader(model)
    return Slots(model, count), PromptReader(model)
