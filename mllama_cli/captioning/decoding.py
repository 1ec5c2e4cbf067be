"""Decode, resize and tile images in worker processes, ahead of the model.

The workers never import torch. An image that kills its worker (a crash of the decoder, the system out of memory) fails
alone.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Protocol, TypeVar

from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.errors import ImageError, MllamaError
from mllama_cli.processing.prepared import PreparedImage, prepare_image
from mllama_cli.system.interrupts import defer_interrupts

MAX_WORKERS = 16
TASKS_PER_WORKER = 3
"""Images in flight for each worker: enough to keep the model busy, few enough to fit large images in memory."""

POLL_SECONDS = 0.02
"""How long to wait for a worker before the caller may do something else."""


class HasEntry(Protocol):
    @property
    def entry(self) -> ImageEntry: ...


JobT = TypeVar("JobT", bound=HasEntry)
Decoding = Future[PreparedImage]


def decode(entry: ImageEntry, config: ImageProcessorConfig) -> PreparedImage:
    """Read and prepare one image, its digest included. Raise MllamaError if something is wrong with it."""
    try:
        image = prepare_image(entry.read(), config)
    except MemoryError:
        raise ImageError(f"{entry.path} does not fit in memory", "Resize the image first.") from None
    _ = image.digest  # computed here, kept by the image
    return image


class DecodingPool:
    """Worker processes, as a context manager so that none outlives the run. ``workers`` 0 decodes in this process."""

    def __init__(self, config: ImageProcessorConfig, workers: int | None = None) -> None:
        self._config = config
        self.workers = default_workers() if workers is None else workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "DecodingPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._pool is not None:
            with defer_interrupts():
                self._pool.shutdown(cancel_futures=True)
                self._pool = None

    def decode(self, jobs: Iterable[JobT]) -> Iterator[tuple[JobT, Decoding] | None]:
        """Yield each job, in order, with the finished decoding of its image; None while the next is not ready.

        ``jobs`` is pulled no further ahead than the workers need. A decoding's result may be an MllamaError.
        """
        if not self.workers:
            yield from ((job, self._decode_here(job.entry)) for job in jobs)
            return
        ahead: deque[tuple[JobT, Decoding]] = deque()
        source = iter(jobs)
        while True:
            while len(ahead) < TASKS_PER_WORKER * self.workers and (job := next(source, None)) is not None:
                ahead.append((job, self._submit(job.entry)))
            if not ahead:
                return
            decoding = ahead[0][1]
            if not _finished_soon(decoding):
                yield None
            elif not _is_broken(decoding):
                yield ahead.popleft()
            else:  # one of the images in flight broke the pool: decode them one at a time to find it
                self.close()
                in_flight = [job for job, _ in ahead]
                ahead.clear()
                for job in in_flight:
                    decoding = self._submit(job.entry)
                    while not _finished_soon(decoding):
                        yield None
                    if _is_broken(decoding):
                        self.close()
                        decoding = _failed(
                            ImageError(
                                f"{job.entry.path} crashes the image decoder",
                                "The file may be damaged: try to save it again as PNG.",
                            )
                        )
                    yield job, decoding

    def _decode_here(self, entry: ImageEntry) -> Decoding:
        decoding = Decoding()
        try:
            decoding.set_result(decode(entry, self._config))
        except MllamaError as error:
            decoding.set_exception(error)
        return decoding

    def _submit(self, entry: ImageEntry) -> Decoding:
        try:
            with defer_interrupts():
                if self._pool is None:
                    self._pool = _start(self.workers)
                return self._pool.submit(decode, entry, self._config)
        except BrokenProcessPool as error:
            return _failed(error)


def default_workers() -> int:
    """Return the number of usable CPUs less one for the model, up to MAX_WORKERS."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable - 1, MAX_WORKERS))


def _finished_soon(decoding: Decoding) -> bool:
    with defer_interrupts():
        wait([decoding], timeout=POLL_SECONDS)
    return decoding.done()


def _is_broken(decoding: Decoding) -> bool:
    return isinstance(decoding.exception(), BrokenProcessPool)


def _failed(error: Exception) -> Decoding:
    decoding = Decoding()
    decoding.set_exception(error)
    return decoding


def _start(workers: int) -> ProcessPoolExecutor:
    # Forking this process would copy torch's threads in any state; the fork server has none.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["mllama_cli.captioning.decoding"])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_the_parent)


def _follow_the_parent() -> None:
    """Leave Ctrl-C, which reaches the whole process group, to the parent, and do not outlive it if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
