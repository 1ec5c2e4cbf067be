"""Pictures decoded, resized and cut in worker processes, ahead of the model.

The workers never import torch. A picture that kills its worker (a decoder's crash, the system out of memory) costs that
picture alone.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError, MllamaError
from mllama_cli.processing.canvas import Canvas, draw_canvas
from mllama_cli.system.interrupts import interrupts_held

MAX_WORKERS = 16
TASKS_PER_WORKER = 3
"""Pictures that are decoded, waiting or in work for each worker: enough that the model never waits, few enough that
large pictures do not fill the memory."""

PATIENCE = 0.02
"""Seconds to wait for a worker before the caller may do something else."""


@dataclass(frozen=True)
class Decoded:
    """A picture ready for the model; width and height in pixels, upright. The digest is computed in the worker."""

    part: ImagePart
    digest: str
    canvas: Canvas
    width: int
    height: int


def decode(path: str, config: ImageProcessorConfig) -> Decoded | MllamaError:
    """Read and prepare one picture file; what is wrong with it is returned."""
    from mllama_cli.processing.images import open_image
    from mllama_cli.processing.sources import read_image

    try:
        part = read_image(Path(path))
        image = open_image(part)
        return Decoded(part, part.digest, draw_canvas(image, config), image.width, image.height)
    except MllamaError as error:
        return error
    except MemoryError:
        return ImageError(f"{path} does not fit in memory", "Make the picture smaller first.")


class DecodingPool:
    """Worker processes. Use as a context manager, so that none outlives the run. ``workers`` 0 decodes in this one."""

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
            with interrupts_held():
                self._pool.shutdown(cancel_futures=True)
                self._pool = None

    def decoded(self, paths: Iterable[str]) -> Iterator[Decoded | MllamaError | None]:
        """One result for each path, in order; None now and then while the next is not ready. ``paths`` is pulled no
        further ahead than the workers need."""
        if not self.workers:
            yield from (decode(path, self._config) for path in paths)
            return
        ahead: deque[tuple[str, Future[Decoded | MllamaError]]] = deque()
        source = iter(paths)
        while True:
            while len(ahead) < TASKS_PER_WORKER * self.workers and (path := next(source, None)) is not None:
                ahead.append((path, self._submit(path)))
            if not ahead:
                return
            path, future = ahead[0]
            try:
                with interrupts_held():
                    result = future.result(timeout=PATIENCE)
                ahead.popleft()
                yield result
            except TimeoutError:
                yield None
            except BrokenProcessPool:
                # One of those in work is the culprit: find it by asking one at a time.
                self.close()
                waiting = [path for path, _ in ahead]
                ahead.clear()
                yield from (self._alone(path) for path in waiting)

    def _submit(self, path: str) -> "Future[Decoded | MllamaError]":
        try:
            with interrupts_held():
                if self._pool is None:
                    self._pool = _start(self.workers)
                return self._pool.submit(decode, path, self._config)
        except BrokenProcessPool:
            broken: Future[Decoded | MllamaError] = Future()
            broken.set_exception(BrokenProcessPool())
            return broken

    def _alone(self, path: str) -> Decoded | MllamaError:
        try:
            return self._submit(path).result()
        except BrokenProcessPool:
            self.close()
            return ImageError(f"{path} makes the decoder crash", "The file may be damaged: save it anew as PNG.")


def default_workers() -> int:
    """As many as there are processors but one, which the model keeps."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable - 1, MAX_WORKERS))


def _start(workers: int) -> ProcessPoolExecutor:
    # A fork of this process would copy torch's threads in any state; the fork server has never had them.
    names = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in names else "spawn")
    if "forkserver" in names:
        context.set_forkserver_preload(["mllama_cli.captioning.decoding", "mllama_cli.processing.images"])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_live_with_the_parent)


def _live_with_the_parent() -> None:
    """Ctrl-C reaches the whole group: the parent decides what becomes of it. And no worker outlives a killed parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
