"""Decode images in worker processes, or at once where that is sure to be quick and small.

A worker has limits of memory and time. An image that kills its worker, or takes too long, fails alone. Workers start
when they are needed and end with this process. This module imports neither numpy nor PIL, so that a worker may start
while the caller imports those.
"""

import functools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import ImagePart, MeasuredImage
from mllama_cli.core.errors import ImageError, ImageNotFoundError, MllamaError, UsageError
from mllama_cli.processing.decoder_process import DecoderDiedError, DecoderProcess
from mllama_cli.processing.limits import MAX_PICTURE_SECONDS, QUICK_PICTURE_BYTES, QUICK_PICTURE_PASSES
from mllama_cli.processing.side_data import PNG_SIGNATURE

if TYPE_CHECKING:
    from mllama_cli.processing.memory_budget import DecodingPlan
    from mllama_cli.processing.prepared import PreparedImage

AnswerT = TypeVar("AnswerT")

MAX_WORKERS = 16

_ERRORS: Mapping[str, type[MllamaError]] = {
    error.__name__: error for error in (ImageError, ImageNotFoundError, UsageError)
}


class Decoder:
    """Up to ``workers`` processes that decode images. Any number of threads may use it at once.

    ``seconds`` is the time for each image, from when a worker takes it. Of images that need much memory one is decoded
    at a time. ``buffer`` makes the memory for the pixels of an image.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        seconds: float = MAX_PICTURE_SECONDS,
        buffer: Callable[[int], memoryview] | None = None,
    ) -> None:
        self.workers = default_workers() if workers is None else workers
        self._seconds, self._buffer = seconds, buffer or _pixel_buffer
        self._slots = threading.Semaphore(self.workers)
        self._turn = threading.Lock()  # of large images
        self._lock = threading.Lock()
        self._idle: list[DecoderProcess] = []
        self._busy: set[DecoderProcess] = set()
        self._process = os.getpid()
        self._closed = threading.Event()

    def decode(
        self, image: ImagePart, config: ImageProcessorConfig, *, seconds: float | None = None
    ) -> "PreparedImage":
        """Return an image with its canvas, unless it has one for ``config`` already. ``seconds`` is its own limit.

        Raises ImageError if something is wrong with it.
        """
        if type(image) is not ImagePart:
            from mllama_cli.processing.prepared import PreparedImage

            if isinstance(image, PreparedImage) and image.config == config:
                return image
        return self._decoded(image.name, image, config, seconds)

    def decode_file(self, path: str, config: ImageProcessorConfig, page: int = 0) -> "PreparedImage":
        """Read an image file, or a page of a PDF document, in a worker, too, and decode it. Raise MllamaError."""
        return self._decoded(path, None, config, None, page)

    def measure_file(self, path: str, config: ImageProcessorConfig, page: int = 0) -> MeasuredImage:
        """Return an image file with its size, after a worker has decoded it without an error. Raise MllamaError.

        Of a PDF document that is the picture of a page, as PNG.
        """
        return self._measured(path, None, config, page)

    def measure(self, image: ImagePart, config: ImageProcessorConfig) -> MeasuredImage:
        """Do as ``measure_file`` with an image that was read already."""
        return self._measured(image.name, image, config)

    def start(self) -> None:
        """Start a worker ahead of the first image, without waiting for it."""
        with self._lock:
            if not self._idle and not self._busy and not self._closed.is_set():
                self._idle.append(DecoderProcess())

    def close(self) -> None:
        """Kill the workers. Images that are being decoded fail."""
        with self._lock:
            self._closed.set()
            workers = [*self._idle, *self._busy]
            self._idle.clear()
        for worker in workers:
            worker.kill()

    def _measured(
        self, name: str, image: ImagePart | None, config: ImageProcessorConfig, page: int = 0
    ) -> MeasuredImage:
        request: dict[str, Any] = {"config": asdict(config), "canvas": False, **_of_page(name, page)}
        if image is not None:
            request["bytes"] = len(image.data)

        def measured(answer: Mapping[str, Any], payload: memoryview) -> MeasuredImage:
            data = bytes(payload) if image is None else image.data
            return MeasuredImage(data, name, width=answer["width"], height=answer["height"])

        return self.ask(name, request, b"" if image is None else image.data, measured)

    def _decoded(
        self, name: str, image: ImagePart | None, config: ImageProcessorConfig, seconds: float | None, page: int = 0
    ) -> "PreparedImage":
        request: dict[str, Any] = {"config": asdict(config), **_of_page(name, page)}
        if image is not None:
            request["bytes"] = len(image.data)

        def prepared(answer: Mapping[str, Any], payload: memoryview) -> "PreparedImage":
            return _prepared(answer, payload, name, image, config)

        data = b"" if image is None else image.data
        return self.ask(name, request, data, prepared, seconds=seconds, buffer=self._buffer)

    def ask(
        self,
        name: str,
        request: Mapping[str, Any],
        data: bytes,
        read: Callable[[Mapping[str, Any], memoryview], AnswerT],
        *,
        seconds: float | None = None,
        if_late: str = "Save it again as PNG or JPEG, or make it smaller.",
        buffer: Callable[[int], memoryview] | None = None,
    ) -> AnswerT:
        """Return what ``read`` makes of a worker's answer (``decoding_worker``) and the bytes that follow it.

        Raise what the worker raises, and ImageError if it dies, or takes longer than ``seconds``, with a hint.
        """
        seconds = self._seconds if seconds is None else seconds
        with self._slots:
            # Once more, in case that the system killed the worker for another process's memory, or that its limit for
            # documents among others was too low.
            for turn in (nullcontext(), self._turn):
                again = {"admitted": True} if turn is self._turn else {}
                with turn, self._worker() as worker:
                    try:
                        # A worker may have been started in another folder.
                        asked = {**request, "name": name, "folder": _current_folder(), **again}
                        return self._ask(worker, asked, data, seconds, read, buffer or _small_buffer)
                    except (DecoderDiedError, OSError):
                        worker.kill()
                if worker.is_late:
                    raise ImageError(f"{name} takes longer than {seconds:g} seconds to read and decode", if_late)
        raise ImageError(f"{name} crashes the image decoder", "The file may be damaged: try to save it again as PNG.")

    @contextmanager
    def _worker(self) -> Iterator[DecoderProcess]:
        """Give a worker of this thread's own. One that is left by an error, as by Ctrl-C, is killed."""
        with self._lock:
            if self._closed.is_set():
                raise ImageError("The image decoder was closed")
            if self._process != os.getpid():  # after a fork the pipes are the other process's
                self._process, self._idle, self._busy = os.getpid(), [], set()
            worker = self._idle.pop() if self._idle else DecoderProcess()
            self._busy.add(worker)
        try:
            yield worker
        except MllamaError:
            raise
        except BaseException:
            worker.kill()
            raise
        finally:
            with self._lock:
                self._busy.discard(worker)
                if self._closed.is_set():
                    worker.kill()
                elif worker.is_alive:
                    self._idle.append(worker)

    def _ask(
        self,
        worker: DecoderProcess,
        request: Mapping[str, Any],
        data: bytes,
        seconds: float,
        read: Callable[[Mapping[str, Any], memoryview], AnswerT],
        buffer: Callable[[int], memoryview],
    ) -> AnswerT:
        answer, payload = worker.ask(request, data, seconds, buffer)
        if "large" in answer:
            with self._turn:
                answer, payload = worker.ask({}, b"", seconds, buffer)
        if "error" in answer:
            raise _ERRORS.get(answer["error"], ImageError)(answer["message"], answer["hint"])
        try:
            return read(answer, payload)
        except (ValueError, LookupError, TypeError) as error:  # its memory is damaged
            raise DecoderDiedError from error


def _small_buffer(size: int) -> memoryview:
    return memoryview(bytearray(size))


def _pixel_buffer(size: int) -> memoryview:
    import numpy as np

    return np.empty(size, np.uint8).data  # without writing zeros first


def _current_folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it was deleted
        return ""


def _of_page(path: str, page: int) -> dict[str, Any]:
    """Return the fields of a request about a page of a document; none for ``page`` 0."""
    return {"path": path.removesuffix(f"#{page}"), "page": page} if page else {}


def _prepared(
    answer: Mapping[str, Any], payload: memoryview, name: str, image: ImagePart | None, config: ImageProcessorConfig
) -> "PreparedImage":
    import numpy as np

    from mllama_cli.processing.canvas import Canvas
    from mllama_cli.processing.prepared import PreparedImage

    shape = (answer["tiles"], 3, config.tile_size, config.tile_size)
    count = math.prod(shape)
    height, width = answer["size"]
    pixels, file = payload, b""
    if len(payload) > count:  # the file follows
        pixels, file = payload[:count], bytes(payload[count:])
    canvas = Canvas(
        np.frombuffer(pixels, np.uint8).reshape(shape), answer["columns"], answer["aspect_ratio_id"], (height, width)
    )
    data = file if image is None else image.data
    return PreparedImage(data, name, canvas=canvas, width=answer["width"], height=answer["height"], config=config)


def default_workers() -> int:
    """Return the number of usable CPUs less one for the model, up to MAX_WORKERS."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable - 1, MAX_WORKERS))


@functools.cache
def shared_decoder() -> Decoder:
    """Return the decoder that all of this process shares but caption runs, which end theirs."""
    return Decoder()


def decode_image(
    image: ImagePart, config: ImageProcessorConfig, *, seconds: float = MAX_PICTURE_SECONDS
) -> "PreparedImage":
    """Decode an image of the user's own. Raise ImageError.

    A JPEG or PNG of ordinary size is decoded at once: time and memory are bounded by its header, and the first worker
    would delay a chat's first answer by a fifth of a second. All others go to the shared decoder.
    """
    if _may_be_quick(image):
        from mllama_cli.processing.images import NotAdmittedError
        from mllama_cli.processing.prepared import prepare_image

        with suppress(NotAdmittedError):
            return prepare_image(image, config, _is_quick)
    return shared_decoder().decode(image, config, seconds=seconds)


def expect_images(images: Iterable[ImagePart]) -> None:
    """Start the shared decoder's first worker if one of these images needs it, without waiting for it."""
    if not all(map(_may_be_quick, images)):
        shared_decoder().start()


def _may_be_quick(image: ImagePart) -> bool:
    return image.data.startswith((PNG_SIGNATURE, b"\xff\xd8\xff"))


def _is_quick(plan: "DecodingPlan") -> bool:
    return plan.needed <= QUICK_PICTURE_BYTES and plan.passes <= QUICK_PICTURE_PASSES
