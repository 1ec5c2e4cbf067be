"""The caller's side of a process that decodes images (``decoding_worker``): send requests, read answers, end it."""

import json
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from io import BufferedReader
from typing import Any

from mllama_cli.core.errors import MllamaError
from mllama_cli.processing.limits import DEFAULT_LIMITS
from mllama_cli.processing.shared_memory import share
from mllama_cli.processing.worker_process import end_worker, start_worker

_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # glibc keeps the memory of one image for the next: page faults take longer than cutting it into tiles.
    **dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**25)),
}
_MAX_LINE = 1 << 20
_MAX_PAYLOAD = DEFAULT_LIMITS.max_bytes + (1 << 28)


class DecoderDiedError(Exception):
    """The process ended in the midst of an image."""


class DecoderProcess:
    """A process that decodes one image after the other."""

    def __init__(self) -> None:
        shared = share()
        descriptors = [shared[0]] if shared else []
        self._memory = memoryview(shared[1]) if shared else memoryview(b"")
        try:
            self._process = start_worker("decoding_worker.py", _ENVIRONMENT, descriptors)
        except OSError as error:
            hint = "Close other programs, or raise the limit of processes (ulimit -u)."
            raise MllamaError(f"The image decoder cannot be started: {error.strerror}", hint) from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._end = weakref.finalize(self, end_worker, self._process)
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self.is_late = False

    @property
    def is_alive(self) -> bool:
        return self._end.alive

    def kill(self) -> None:
        self._end()

    def ask(
        self, head: Mapping[str, Any], data: bytes, seconds: float, buffer: Callable[[int], memoryview]
    ) -> tuple[dict[str, Any], memoryview]:
        """Return an answer and the bytes that follow it. Raise DecoderDiedError or OSError if none comes in time."""
        assert self._requests is not None
        assert isinstance(self._answers, BufferedReader)
        watch = threading.Timer(seconds, self._too_late)
        watch.daemon = True
        watch.start()
        try:
            self._requests.write(json.dumps(head).encode() + b"\n")
            self._requests.write(data)
            self._requests.flush()
            answer: dict[str, Any] = json.loads(self._answers.readline(_MAX_LINE))
            is_shared = answer.get("shared", False)
            size = max(0, min(answer.get("payload", 0), len(self._memory) if is_shared else _MAX_PAYLOAD))
            payload = buffer(size)
            if is_shared:
                payload[:] = self._memory[:size]
            received = size if is_shared else self._answers.readinto(payload)
        except ValueError as error:  # half an answer, or a pipe that was closed
            raise DecoderDiedError from error
        finally:
            watch.cancel()
        if received < size or self.is_late:
            raise DecoderDiedError
        return answer, payload

    def _too_late(self) -> None:
        self.is_late = True
        self._process.kill()
