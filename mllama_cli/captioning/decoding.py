"""Decode, resize and tile images in worker processes, ahead of the model.

The workers never import torch. An image that kills its worker (a crash of the decoder, the system out of memory), or
that takes too long, fails alone. Of images that take much memory one is decoded at a time.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.errors import ImageError, MllamaError
from mllama_cli.processing.memory_budget import LARGE_PICTURE_BYTES, MAX_PICTURE_BYTES
from mllama_cli.processing.prepared import PreparedImage, prepare_image
from mllama_cli.system.interrupts import defer_interrupts

MAX_WORKERS = 16
TASKS_PER_WORKER = 3
"""Images in flight for each worker: enough to keep the model busy, few enough to fit large images in memory."""

MAX_PICTURE_SECONDS = 60.0
"""The time for reading and decoding one image in a worker."""
WORKER_BYTES = MAX_PICTURE_BYTES + 400_000_000
"""What a worker may allocate, should a file deceive the estimate of what its decoder takes."""

POLL_SECONDS = 0.02
"""How long to wait for a worker before the caller may do something else."""


class HasEntry(Protocol):
    @property
    def entry(self) -> ImageEntry: ...


JobT = TypeVar("JobT", bound=HasEntry)
Decoding = Future[PreparedImage]


def decode(
    entry: ImageEntry, config: ImageProcessorConfig, admit: Callable[[int], None] | None = None
) -> PreparedImage:
    """Read and prepare one image, its digest included. Raise MllamaError if something is wrong with it."""
    try:
        image = prepare_image(entry.read(), config, admit)
    except MemoryError:
        raise ImageError(f"{entry.path} does not fit in memory", "Resize the image first.") from None
    _ = image.digest  # computed here, kept by the image
    return image


class DecodingPool:
    """Worker processes, as a context manager so that none outlives the run. ``workers`` 0 decodes in this process."""

    def __init__(
        self, config: ImageProcessorConfig, workers: int | None = None, *, seconds: float = MAX_PICTURE_SECONDS
    ) -> None:
        self._config = config
        self._seconds = seconds
        self.workers = default_workers() if workers is None else workers
        self._pool: list[_Worker] = []

    def __enter__(self) -> "DecodingPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers: they write nothing, and one may be busy with an image for long."""
        with defer_interrupts():
            for worker in self._pool:
                worker.kill()
            self._pool.clear()

    def decode(self, jobs: Iterable[JobT]) -> Iterator[tuple[JobT, Decoding] | None]:
        """Yield each job, in order, with the finished decoding of its image; None while the next is not ready.

        ``jobs`` is pulled no further ahead than the workers need. A decoding's result may be an MllamaError.
        """
        if not self.workers:
            yield from ((job, self._decode_here(job.entry)) for job in jobs)
            return
        ahead: deque[tuple[JobT, Decoding]] = deque()
        queue: deque[_Task] = deque()
        source = iter(jobs)
        while True:
            while len(ahead) < TASKS_PER_WORKER * self.workers and (job := next(source, None)) is not None:
                task = _Task(job.entry)
                queue.append(task)
                ahead.append((job, task.decoding))
            if not ahead:
                return
            with defer_interrupts():
                self._assign(queue)
                self._collect(queue, POLL_SECONDS if not ahead[0][1].done() else 0)
            yield ahead.popleft() if ahead[0][1].done() else None

    def _decode_here(self, entry: ImageEntry) -> Decoding:
        decoding = Decoding()
        try:
            decoding.set_result(decode(entry, self._config))
        except MllamaError as error:
            decoding.set_exception(error)
        return decoding

    def _assign(self, queue: "deque[_Task]") -> None:
        """Give each idle worker a task; start workers as long as there are tasks."""
        while queue:
            worker = next((worker for worker in self._pool if worker.task is None), None)
            if worker is None:
                if len(self._pool) >= self.workers:
                    return
                self._pool.append(worker := _Worker(self._config))
            try:
                worker.begin(queue[0], self._seconds)
            except OSError:  # it was killed while it was idle
                self._remove(worker)
                continue
            queue.popleft()

    def _collect(self, queue: "deque[_Task]", timeout: float) -> None:
        """Take what workers report, wait for that at most ``timeout`` seconds, and kill those that take too long."""
        by_pipe = {worker.pipe: worker for worker in self._pool if worker.task is not None}
        for pipe in wait(list(by_pipe), timeout):
            worker = by_pipe[pipe]  # type: ignore[index]
            task = worker.task
            assert task is not None
            try:
                report = worker.pipe.recv()
            except (OSError, EOFError):
                self._remove(worker)
                task.died(queue)
                continue
            if report is _NEEDS_MUCH:
                worker.waits = True
                continue
            worker.finish()
            if isinstance(report, BaseException):
                task.decoding.set_exception(report)
            else:
                task.decoding.set_result(report)
        waiting = [worker for worker in self._pool if worker.waits]
        if waiting and not any(worker.is_large for worker in self._pool):
            waiting[0].go_on(self._seconds)
        for worker in [worker for worker in self._pool if worker.is_late()]:
            assert worker.task is not None
            worker.task.took_too_long(self._seconds)
            self._remove(worker)

    def _remove(self, worker: "_Worker") -> None:
        worker.kill()
        self._pool.remove(worker)


def default_workers() -> int:
    """Return the number of usable CPUs less one for the model, up to MAX_WORKERS."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable - 1, MAX_WORKERS))


_NEEDS_MUCH = None
"""A worker's report that the image is large; it goes on when it is answered."""


class _Task:
    """An image to decode, and its result."""

    def __init__(self, entry: ImageEntry) -> None:
        self.entry = entry
        self.decoding = Decoding()
        self._deaths = 0

    def died(self, queue: "deque[_Task]") -> None:
        """Try once more, in case that the worker was killed for the sake of another process's memory."""
        self._deaths += 1
        if self._deaths < 2:
            queue.appendleft(self)
            return
        hint = "The file may be damaged: try to save it again as PNG."
        self.decoding.set_exception(ImageError(f"{self.entry.path} crashes the image decoder", hint))

    def took_too_long(self, seconds: float) -> None:
        error = f"{self.entry.path} takes longer than {seconds:g} seconds to read and decode"
        self.decoding.set_exception(ImageError(error, "Save it again as PNG or JPEG, or make it smaller."))


class _Worker:
    """A process that decodes one image after the other."""

    def __init__(self, config: ImageProcessorConfig) -> None:
        # Forking this process would copy torch's threads in any state; the fork server has none.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["mllama_cli.captioning.decoding"])
        self.pipe, theirs = context.Pipe()
        process: Any = context.Process(target=_work, args=(theirs, config), daemon=True)  # type: ignore[attr-defined]
        self._process = process
        self._process.start()
        theirs.close()
        self.task: _Task | None = None
        self.waits = self.is_large = False
        self._deadline = 0.0

    def begin(self, task: _Task, seconds: float) -> None:
        self.pipe.send(task.entry)
        self.task, self._deadline = task, time.monotonic() + seconds

    def go_on(self, seconds: float) -> None:
        """Let the worker decode a large image."""
        self.waits, self.is_large, self._deadline = False, True, time.monotonic() + seconds
        with suppress(OSError):  # it was killed: its end is noticed when its report is read
            self.pipe.send(True)

    def finish(self) -> None:
        self.task, self.waits, self.is_large = None, False, False

    def is_late(self) -> bool:
        return self.task is not None and not self.waits and time.monotonic() > self._deadline

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _work(pipe: "Connection[Any, Any]", config: ImageProcessorConfig) -> None:
    """Decode what comes through ``pipe``, until it is closed."""
    _follow_the_parent()
    _limit_memory()

    def admit(needed: int) -> None:
        if needed > LARGE_PICTURE_BYTES:
            pipe.send(_NEEDS_MUCH)
            pipe.recv()

    while True:
        try:
            entry = pipe.recv()
        except (OSError, EOFError):
            return
        try:
            pipe.send(decode(entry, config, admit))
        except MllamaError as error:
            pipe.send(error)


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        with suppress(OSError, ValueError):
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (WORKER_BYTES, hard))


def _follow_the_parent() -> None:
    """Leave Ctrl-C, which reaches the whole process group, to the parent, and do not outlive it if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
