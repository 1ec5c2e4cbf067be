"""Which requests are prefilled next, with their images encoded."""

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
"""Requests whose images are encoded before there is a slot for them: on a GPU that overlaps with the steps."""

MIN_PREFILL_BATCH = 4
"""Requests worth a prefill on a GPU while others are answered."""


class RequestQueue:
    """The caller's requests, pulled when needed, and before them those that are answered again."""

    def __init__(self, source: Iterable[BatchRequest | None]) -> None:
        self.failed = False
        """Whether the source has raised: its errors are the caller's own, even one of memory."""
        self._source: Iterator[BatchRequest | None] | None = iter(source)
        self._requeued: deque[BatchRequest] = deque()

    @property
    def empty(self) -> bool:
        """Whether no request will come any more."""
        return self._source is None and not self._requeued

    def pull(self) -> BatchRequest | None:
        """Return the next request; None where there is none, now or ever."""
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
    """Choose requests for the next prefill. On a GPU, begin with the images of those after them.

    Args:
        refill: whether slots are filled as soon as they are free, so that it pays to wait for a few requests.
        replies: takes the reply to a request that cannot be answered. (A callback would be a reference cycle, in which
            the slots' memory outlives the batch.)
    """

    def __init__(
        self,
        model: LoadedModel,
        queue: RequestQueue,
        *,
        refill: bool,
        replies: deque[BatchReply],
    ) -> None:
        self.queue = queue
        self.images = ImageCache(model.vision, overlap=True)
        self.prefetches = bool(PREFETCH[model.device.type])
        self.batch: list[BatchRequest] = []
        """The next prefill batch: until its prefill is through, running out of memory withdraws it."""
        self._waiting: deque[BatchRequest] = deque()
        """Requests whose images are encoded, or being encoded, and that have no slot yet."""
        self._model, self._replies = model, replies
        self._prefetch_limit = PREFETCH[model.device.type]
        self._min_batch = MIN_PREFILL_BATCH if refill else 1

    @property
    def empty(self) -> bool:
        """Whether all requests have been admitted."""
        return self.queue.empty and not self._waiting

    def prefetch(self, slots: int) -> None:
        """Begin to encode the images of the requests that come next, up to a rejected one."""
        while len(self._waiting) < min(self._prefetch_limit, slots) and (request := self.queue.pull()):
            self._waiting.append(request)
            if not self._encode(request):
                self._waiting.pop()
                return

    def should_prefill(self, slots: int, free: int) -> bool:
        """Return whether a prefill comes before the next step.

        On a GPU several requests at a time, since one costs as much. While images are on their way to free slots
        nothing steps: the GPU is busy with them anyway, and a step costs hardly less for few slots than for many.
        """
        return not self.prefetches or (bool(self._waiting) and free >= self._group(slots))

    def collect(self, slots: int, free: int) -> bool:
        """Fill ``batch`` with requests that can be prefilled together; return whether one was rejected meanwhile."""
        group = self._group(slots)
        most = min(free, max_prefill_batch(slots) if self.prefetches else MAX_PREFILL_BATCH)
        while len(self.batch) < most and (request := self._next(group)):
            self.batch.append(request)
            if not self.prefetches and not self._encode(request):
                self.batch.pop()
                return True
        return False

    def admitted(self) -> None:
        """Note that ``batch`` is in its slots."""
        self.batch = []
        self.images.trim({image.digest for request in self._waiting for image in request.inputs.images})

    def withdraw(self) -> list[BatchRequest]:
        """Forget all images, and return the requests that were chosen or waited."""
        withdrawn = [*self.batch, *self._waiting]
        self.batch = []
        self._waiting.clear()
        self.images.clear()
        return withdrawn

    def _group(self, slots: int) -> int:
        """Return how many are prefilled together at least, if there will be that many."""
        return min(self._min_batch, max_prefill_batch(slots), len(self._waiting))

    def _next(self, group: int) -> BatchRequest | None:
        """Return the next request if it can be prefilled with those of ``batch``; None where there is none now.

        The images of a ``group`` are waited for; those of more requests are not.
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
                self._put_back(request)
                return None
        return request

    def _put_back(self, request: BatchRequest) -> None:
        if self.prefetches:
            self._waiting.appendleft(request)
        else:
            self.queue.requeue([request])

    def _ready(self, request: BatchRequest) -> bool:
        return all(self.images.ready(image.digest) for image in request.inputs.images)

    def _encode(self, request: BatchRequest) -> bool:
        """Encode a request's images; where it cannot be answered at all, reject it."""
        if request.inputs.images and not self._model.vision_loaded:
            for _ in self._model.load_vision():
                pass
        try:
            self.images.encode(self._tiles(request))
        except MllamaError as error:
            self._replies.append(BatchReply.failed(request, error))
            return False
        return True

    def _tiles(self, request: BatchRequest) -> dict[str, ImageTiles]:
        """Return the tiles of the images that are not encoded yet, by digest. Raise what is wrong with the request."""
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
