"""Admit requests in their order: reserve memory, reuse what caches hold, and encode images."""

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator

from mllama_cli.core.errors import ContextLengthError, MllamaError
from mllama_cli.core.events import EncodingImage, Notice
from mllama_cli.engine.batch.capacity import EXPECTED_NEW_TOKENS, Memory
from mllama_cli.engine.batch.prefill import visible_images
from mllama_cli.engine.batch.prefix_cache import MIN_SHARED_PREFIX, CachedText, PrefixCache, shared_prefix
from mllama_cli.engine.batch.request import Request
from mllama_cli.engine.batch.slots import SlotCaches
from mllama_cli.engine.completion import Completion
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.vision import ImageCache, group_key
from mllama_cli.model.cache import KVCache
from mllama_cli.model.visibility import image_spans


class Admission:
    """Requests before they have a slot.

    Args:
        active: the requests that have a slot, a list that its owner changes.
        failures: collects requests that cannot be answered, with the reason. (Callbacks instead would be reference
            cycles, which would keep the slots' memory after the batch.)
    """

    def __init__(
        self,
        model: LoadedModel,
        memory: Memory,
        max_context: int,
        active: list[Request],
        failures: deque[tuple[Request, MllamaError]],
    ) -> None:
        self.waiting: deque[Request] = deque()
        """In order of arrival; nothing is reserved for them."""
        self.admitted: list[Request] = []
        """In order of arrival; their memory is reserved, and their images are encoded or will be."""
        self.images = ImageCache(model.vision, memory.kept_images, float8=model.image_kv is not None)
        self.prefixes = PrefixCache(memory.slots)
        self.images_encoded = self.image_hits = self.cached_tokens = 0
        self._model, self._memory, self._max_context = model, memory, max_context
        self._active, self._failures = active, failures
        self._encoding: tuple[Request, Iterator[int]] | None = None

    def admit(self, most: int) -> None:
        """Admit requests until there are ``most``, as far as memory allows."""
        while self.waiting and len(self.admitted) < most:
            request = self.waiting[0]
            try:
                if not self._reserve(request):
                    return
            except MllamaError as error:
                self.waiting.popleft()
                self._failures.append((request, error))
                continue
            for note in request.inputs.notes:
                request.report(Notice(note))
        if self.images.nbytes > self.images.limit:
            self.images.trim(self._images_in_use())

    def encode(self) -> int:
        """Run some layers on an image of the first admitted request that lacks one; return its tiles, 0 for none."""
        while True:
            if self._encoding is None:
                request = next((request for request in self.admitted if not self.ready(request)), None)
                if request is None:
                    return 0
                self._encoding = (request, self._encode_steps(request))
            request, steps = self._encoding
            try:
                if (tiles := next(steps, 0)) > 0:
                    return tiles
                self._encoding = None
            except MllamaError as error:
                self._encoding = None
                self.remove(request)
                self._failures.append((request, error))

    def reuse(self, request: Request) -> None:
        """Take more of the prompt's beginning from others that were read since this request was admitted."""
        held, shared = self._longest_prefix(request)
        if held is not None and shared > request.cached and request.caches is not None:
            request.caches.cache.copy_from(held.cache, 0, shared)
            request.cached = shared

    def ready(self, request: Request) -> bool:
        """Return whether a request's images are encoded."""
        return all(digest in self.images for digest in self._visible(request))

    @property
    def lacking(self) -> int:
        """The number of admitted requests that lack an image."""
        return sum(not self.ready(request) for request in self.admitted)

    def remove(self, request: Request) -> None:
        """Take out a request, wherever it is, with its caches."""
        if request in self.waiting:
            self.waiting.remove(request)
        if request in self.admitted:
            self.admitted.remove(request)
            request.caches = None
        if self._encoding is not None and self._encoding[0] is request:
            self._encoding = None

    def withdraw(self, requests: Iterable[Request] = ()) -> None:
        """Put requests that had a slot, and all admitted ones, at the front of the queue; forget all caches."""
        back = [*requests, *self.admitted]
        for request in back:
            request.reset()
        self.waiting.extendleft(reversed(back))
        self.admitted.clear()
        self._encoding = None
        self.forget_caches()

    def count(self, request: Request) -> None:
        """Count what caches gave to a request whose prompt is read."""
        self.image_hits += len(visible_images(request)) - request.new_images
        self.cached_tokens += request.cached

    def forget_caches(self) -> None:
        """Drop everything that no request uses."""
        self.prefixes.clear()
        while self.images.evict(self._images_in_use()):
            pass

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values in use or kept."""
        reserved = sum(request.reserved for request in (*self.admitted, *self._active))
        return reserved + self.prefixes.nbytes + self.images.nbytes

    def _reserve(self, request: Request) -> bool:
        """Admit the first request if there is memory for all that it may need; return whether there was.

        Raise MemoryShortageError if there can never be, or ContextLengthError.
        """
        model, ids = self._model, request.ids
        request.started = time.perf_counter()
        room = self._max_context - len(ids)
        if room <= 0:
            raise ContextLengthError(
                f"The conversation is {len(ids)} tokens long, {1 - room} more than this model can "
                f"read and still answer (its context is {self._max_context})",
                "Shorten its text or start a new conversation.",
            )
        prefill = request.inputs.prefill
        constraint = model.constraint(request.sampling, prefill)
        answer = Completion(model.processor.tokenizer, request.sampling, model.eos, room, prefill, constraint)
        expected = answer.budget if request.streams else min(answer.budget, EXPECTED_NEW_TOKENS)
        length = len(ids) + expected
        request.spans = image_spans(ids, model.config.image_token_index)
        held, request.cached = self._longest_prefix(request)
        while not self._fits(request, length):
            if self._evict(held, request):
                continue
            if self.admitted or self._active:
                return False
            if held is None and request.streams:
                raise self._memory.shortage(len(ids))
            if held is None:
                break  # the estimate is a cautious one, and nothing is lost if memory runs out
            self.prefixes.remove(held)
            held, request.cached = None, 0
        self.admitted.append(self.waiting.popleft())  # before memory can run out: then it goes back
        request.answer, request.constraint = answer, constraint
        request.caches = SlotCaches(self._cache_for(request, held, length))
        request.reserved = max(self._memory.text_bytes(length), request.caches.cache.nbytes)
        return True

    def _fits(self, request: Request, length: int) -> bool:
        coming = sum(self._to_encode(other) for other in (*self.admitted, request))
        needed = self._memory.text_bytes(length) + coming * self._memory.image_bytes
        return self.cache_bytes + needed <= self._memory.limit

    def _cache_for(self, request: Request, held: CachedText | None, length: int) -> KVCache:
        """Return a cache of ``length`` positions that begins with what the request shares with ``held``."""
        model, shared = self._model, request.cached
        if held is not None and held in self.prefixes:
            if 2 * shared < len(held.ids):
                self.prefixes.touch(held)
            else:  # such as the conversation so far, whose next turn this is
                self.prefixes.remove(held)
                if held.cache.capacity >= length:
                    held.cache.truncate(shared)
                    return held.cache
        cache = model.new_cache()
        cache.reserve(length)
        if held is not None:
            cache.copy_from(held.cache, 0, shared)
        return cache

    def _longest_prefix(self, request: Request) -> tuple[CachedText | None, int]:
        """Return the text, kept or in a slot, with the longest common beginning, and the length of that."""
        best, longest = None, MIN_SHARED_PREFIX - 1
        image_token = self._model.config.image_token_index
        active = [CachedText(each.ids, each.digests, each.caches.cache) for each in self._active if each.caches]
        # At least one token remains to be fed, since its logits are needed.
        ids, digests = request.ids[:-1], request.digests
        begins_with_image = image_token in ids[:MIN_SHARED_PREFIX]
        for text in (*self.prefixes, *active):
            if begins_with_image and text.digests[:1] != digests[:1]:  # mostly so; most texts need no other comparison
                continue
            shared = shared_prefix(ids, digests, text.ids, text.digests, image_token)
            if shared > longest:
                best, longest = text, shared
        return (best, longest) if best else (None, 0)

    def _evict(self, held: CachedText | None, request: Request) -> bool:
        """Drop one thing that no request uses, but neither ``held`` nor the request's images."""
        unused = next((text for text in self.prefixes if text is not held), None)
        if unused is not None:
            self.prefixes.remove(unused)
            return True
        return self.images.evict({*self._images_in_use(), *self._visible(request)})

    def _visible(self, request: Request) -> list[str]:
        return [request.digests[index] for index in visible_images(request)]

    def _to_encode(self, request: Request) -> int:
        return len({digest for digest in self._visible(request) if digest not in self.images})

    def _images_in_use(self) -> Collection[str]:
        used = set()
        for request in (*self.admitted, *self._active):
            seen = self._visible(request)
            used.update(seen)
            used.add(group_key(request.seen_at_the_end))
        return used

    def _encode_steps(self, request: Request) -> Iterator[int]:
        """Encode a request's images; yield the tiles of one after some layers of it."""
        visible = visible_images(request)
        new = {request.digests[i]: i for i in visible if request.digests[i] not in self.images}
        layers = self._model.vision.layers if new else 0
        for _ in self._model.load(vision=True):
            pass
        for number, (digest, index) in enumerate(new.items(), 1):
            if digest in self.images:
                continue
            request.report(EncodingImage(number, len(new), 0, layers))
            image = request.inputs.images[index]
            tiles = request.tiles[index] if request.tiles else self._model.vision.tiles(image)
            for layer in self.images.encode_steps(image, tiles):
                request.report(EncodingImage(number, len(new), layer, layers))
                yield tiles.num_tiles
            request.new_images += 1
            self.images_encoded += 1
            yield tiles.num_tiles
