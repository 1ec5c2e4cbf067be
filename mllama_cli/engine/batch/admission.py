"""Choose the requests to prefill next, and encode their images."""

from collections import deque
from collections.abc import Iterable, Iterator

from mllama_cli.core.errors import ContextLengthError, MllamaError
from mllama_cli.engine.batch.capacity import MAX_PREFILL_BATCH, max_prefill_batch
from mllama_cli.engine.batch.request import BatchReply, BatchRequest
from mllama_cli.engine.batch.slots import fits_together
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.vision import ImageCache
from mllama_cli.processing.image_processor import ImageTiles

PREFETCH = {"cpu": 0, "cuda": MAX_PREFILL_BATCH}
"""Requests whose images are encoded before a slot is free, which overlaps with steps on a GPU."""

MIN_PREFILL_BATCH = 4
"""Requests to wait for before a prefill on a GPU interrupts the steps of others."""


class RequestQueue:
    """The caller's requests, pulled when needed, after those that are answered again."""

    def __init__(self, source: Iterable[BatchRequest | None]) -> None:
        self.failed = False
        """Whether the source has raised, even for lack of memory: the error is the caller's own."""
        self._source: Iterator[BatchRequest | None] | None = iter(source)
        self._requeued: deque[BatchRequest] = deque()

    @property
    def empty(self) -> bool:
        """Whether no request is left."""
        return self._source is None and not self._requeued

    def pull(self) -> BatchRequest | None:
        """Return the next request; None if none is ready or left."""
        if self._requeued:
            return self._requeued.popleft()
        if self._source is None:
            return None
        try:
            return next(self._source)
        except StopIteration:
            self._source = None
            return None
        except BaseException:
            self.failed = True
            raise

    def requeue(self, requests: Iterable[BatchRequest]) -> None:
        """Put requests before all others, in this order."""
        self._requeued.extendleft(reversed(list(requests)))


class Admission:
    """Choose requests for the next prefill and, on a GPU, prefetch the images of those after them.

    Args:
        refill: whether slots are filled as soon as they are free, so that a prefill waits for a few requests.
        replies: collects replies to rejected requests. (A callback would be a reference cycle, which would keep the
            slots' memory after the batch.)
    """

    def __init__(self, model: LoadedModel, queue: RequestQueue, *, refill: bool, replies: deque[BatchReply]) -> None:
        self.queue = queue
        self.images = ImageCache(model.vision, overlap=True)
        self.prefetches = PREFETCH[model.device.type]
        """Maximum number of requests whose images are prefetched."""
        self.batch: list[BatchRequest] = []
        """The next prefill batch, which is withdrawn if memory runs out before its prefill ends."""
        self._waiting: deque[BatchRequest] = deque()
        """Requests without a slot whose images are encoded or being encoded."""
        self._model, self._replies = model, replies
        self._min_batch = MIN_PREFILL_BATCH if refill else 1

    @property
    def empty(self) -> bool:
        """Whether all requests have been admitted."""
        return self.queue.empty and not self._waiting

    def prefetch(self, slots: int) -> None:
        """Start encoding the images of the next requests, up to a rejected one."""
        while len(self._waiting) < min(self.prefetches, slots) and (request := self.queue.pull()):
            self._waiting.append(request)
            if not self._encode(request):
                self._waiting.pop()
                return

    def should_prefill(self, slots: int, free: int) -> bool:
        """Return whether to prefill before the next step.

        On a GPU a prefill waits for several requests, since one takes as long. Nothing steps while free slots wait for
        images: the GPU is busy encoding, and a step takes almost as long for few slots as for many.
        """
        return not self.prefetches or (bool(self._waiting) and free >= self._group(slots))

    def collect(self, slots: int, free: int) -> bool:
        """Fill ``batch`` with requests to prefill together; return whether one was rejected."""
        group = self._group(slots)
        most = min(free, max_prefill_batch(slots) if self.prefetches else MAX_PREFILL_BATCH)
        while len(self.batch) < most and (request := self._next(group)):
            self.batch.append(request)
            if not self.prefetches and not self._encode(request):
                self.batch.pop()
                return True
        return False

    def admitted(self) -> None:
        """Forget ``batch``, which is in its slots now."""
        self.batch = []
        self.images.trim({image.digest for request in self._waiting for image in request.inputs.images})

    def withdraw(self) -> list[BatchRequest]:
        """Forget all images; return the requests that were in ``batch`` or waiting."""
        withdrawn = [*self.batch, *self._waiting]
        self.batch = []
        self._waiting.clear()
        self.images.clear()
        return withdrawn

    def _group(self, slots: int) -> int:
        """Return the minimum size of the next prefill batch."""
        return min(self._min_batch, max_prefill_batch(slots), len(self._waiting))

    def _next(self, group: int) -> BatchRequest | None:
        """Return the next request if it can be prefilled with ``batch``, otherwise None.

        The first ``group`` requests wait for their images; more are added only if theirs are encoded.
        """
        if not self.prefetches:
            request = self.queue.pull()
        elif self._waiting and (len(self.batch) < group or self._ready(self._waiting[0])):
            request = self._waiting.popleft()
        else:
            request = None
        if request and self.batch:
            lengths = [len(other.inputs.ids) for other in (*self.batch, request)]
            if not fits_together(lengths):
                if self.prefetches:
                    self._waiting.appendleft(request)
                else:
                    self.queue.requeue([request])
                return None
        return request

    def _ready(self, request: BatchRequest) -> bool:
        return all(self.images.ready(image.digest) for image in request.inputs.images)

    def _encode(self, request: BatchRequest) -> bool:
        """Encode a request's images; reject a request that cannot be answered. Return whether it is accepted."""
        if request.inputs.images:
            for _ in self._model.load(vision=True):
                pass
        try:
            self.images.encode(self._tiles(request))
        except MllamaError as error:
            self._replies.append(BatchReply.failed(request, error))
            return False
        return True

    def _tiles(self, request: BatchRequest) -> dict[str, ImageTiles]:
        """Return by digest the tiles of images that are not encoded. Raise ContextLengthError or ImageError."""
        limit, length = self._model.max_context, len(request.inputs.ids)
        if length >= limit:
            raise ContextLengthError(
                f"A conversation of the batch is {length} tokens long; this model's context is {limit}",
                "Shorten its text.",
            )
        images = request.inputs.images
        given = request.tiles or [None] * len(images)
        return {
            image.digest: tiles or self._model.vision.tiles(image)
            for image, tiles in zip(images, given, strict=True)
            if image.digest not in self.images
        }
