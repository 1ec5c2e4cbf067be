"""Decode, resize and tile images in worker processes, ahead of the model."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import Any, Protocol, TypeVar

from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import MeasuredImage
from mllama_cli.processing.decoding import Decoder
from mllama_cli.processing.limits import MAX_PICTURE_SECONDS
from mllama_cli.system.interrupts import ThreadPool, defer_interrupts

TASKS_PER_WORKER = 3
"""Images in flight for each worker: enough to keep the model busy, few enough to fit large images in memory."""

POLL_SECONDS = 0.02
"""How long to wait for a worker before the caller may do something else."""
BUSY_POLL_SECONDS = 0.001
"""How long to wait for an image that is not there yet while the model has others, each of whose tokens it delays."""


class HasEntry(Protocol):
    @property
    def entry(self) -> ImageEntry: ...


JobT = TypeVar("JobT", bound=HasEntry)
Decoding = Future[MeasuredImage]


class DecodingPool:
    """Workers of one run, as a context manager so that none outlives it.

    ``workers`` None is one for each CPU but one; 0 is one that decodes no image ahead.
    """

    def __init__(self, workers: int | None = None, *, seconds: float = MAX_PICTURE_SECONDS) -> None:
        self._decoder = Decoder(workers if workers is None else max(workers, 1), seconds=seconds)
        self._in_flight = TASKS_PER_WORKER * self._decoder.workers if workers != 0 else 1
        self._threads = ThreadPool(self._decoder.workers)

    def __enter__(self) -> "DecodingPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers: they write nothing, and one may be busy with an image for long."""
        with defer_interrupts():
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._decoder.close()
            self._threads.shutdown()

    def start(self) -> None:
        """Start the first worker, without waiting for it."""
        self._decoder.start()

    def decode(
        self,
        jobs: Iterable[JobT | None],
        config: ImageProcessorConfig,
        *,
        canvases: bool = True,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[JobT, Decoding] | None]:
        """Yield each job, in order, with the finished decoding of its image; None while the next is not ready.

        None in ``jobs`` means that the next one is not there yet; ``is_busy`` tells whether the caller has other work.

        ``jobs`` is pulled no further ahead than the workers need. A decoding's result may be an MllamaError. Without
        ``canvases``, images are decoded only to find mistakes in them, and come as they are.
        """
        ahead: deque[tuple[JobT, Decoding]] = deque()
        source, more = iter(jobs), True
        while True:
            while more and len(ahead) < self._in_flight:
                job = next(source, _END)
                if job is None:
                    break
                if job is _END:
                    more = False
                else:
                    ahead.append((job, self._threads.submit(self._decode, job.entry, config, canvases)))
            if not ahead:
                if not more:
                    return
                time.sleep(BUSY_POLL_SECONDS if is_busy() else POLL_SECONDS)
                yield None
                continue
            with defer_interrupts():
                wait([ahead[0][1]], BUSY_POLL_SECONDS if is_busy() else POLL_SECONDS)
            yield ahead.popleft() if ahead[0][1].done() else None

    def _decode(self, entry: ImageEntry, config: ImageProcessorConfig, canvases: bool) -> MeasuredImage:
        data = entry.read()
        image: MeasuredImage
        if data is not None:
            image = self._decoder.decode(data, config) if canvases else self._decoder.measure(data, config)
        elif canvases:
            image = self._decoder.decode_file(entry.path, config, entry.page)
        else:
            image = self._decoder.measure_file(entry.path, config, entry.page)
        _ = image.digest  # computed in this thread, kept by the image
        return image


_END: Any = object()
