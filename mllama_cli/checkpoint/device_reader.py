"""Read weights from files to a device: threads read pieces into pinned memory while earlier ones are copied."""

import os
import queue
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock

import torch
from torch import Tensor

from mllama_cli.checkpoint.extents import PIECE_BYTES, Extent, PieceBuffer
from mllama_cli.checkpoint.stored import StoredTensor
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.system.interrupts import ThreadPool

WINDOW_BYTES = 2**30
"""Bytes of tensors in flight."""

MAX_READER_THREADS = 16

ALLOCATION_BYTES = 512
"""Torch's allocations on a GPU are multiples of it."""


@dataclass
class _InFlight:
    """A tensor that is being read."""

    name: str
    extent: Extent
    whole: Tensor
    flat: Tensor
    """Its bytes."""
    missing: int
    """Pieces that have yet to be copied."""
    lock: Lock = field(default_factory=Lock)

    def is_last(self) -> bool:
        """Note that a piece is copied, or is about to be on the GPU. Return whether it was the last one."""
        with self.lock:
            self.missing -= 1
            return self.missing == 0


Work = queue.SimpleQueue[tuple[_InFlight, int, int] | None]
"""Pieces of tensors, as (tensor, offset, end); None ends a thread."""

Arrivals = queue.SimpleQueue[BaseException | None]
"""None when a tensor is complete: a message for each piece would have threads wait for Python's lock."""


def reader_threads(ranks: int = 1) -> int:
    """Return how many threads read in each of so many processes that load at the same time."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_READER_THREADS, usable // ranks))


def read_to_device(
    tensors: Sequence[tuple[str, StoredTensor]],
    device: torch.device,
    parts: Mapping[str, tuple[slice, slice]] | None = None,
    *,
    kept: bool = False,
    ranks: int = 1,
) -> Generator[tuple[str, Tensor]]:
    """Yield (name, tensor on the device, in its stored dtype) in the given order, each when it is complete.

    Of matrices in ``parts``, only these rows and columns are read. At most WINDOW_BYTES, or one tensor, are read ahead.
    ``kept`` says that the caller keeps the tensors; ``ranks`` is the number of processes that read at the same time.
    Raise CheckpointError, with the file's name, if a file cannot be read or ends early.
    """
    parts = parts or {}
    coming = deque((name, Extent.of(stored, parts.get(name))) for name, stored in tensors)
    device = torch.empty(0, device=device).device  # with its index: new threads don't inherit the current device
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    work, arrivals, stop = Work(), Arrivals(), Event()
    window: deque[_InFlight] = deque()
    size = 0
    count = min(reader_threads(ranks), sum(1 for _, extent in coming for _ in extent.pieces()))
    with ThreadPool(max(count, 1)) as threads:
        try:
            for _ in range(count):
                threads.submit(_run, work, arrivals, stream, stop)
            if kept and stream is not None:
                _reserve([extent.nbytes for _, extent in coming], device)
            while coming or window:
                while coming and (not window or size + coming[0][1].nbytes <= WINDOW_BYTES):
                    tensor = _begin(*coming.popleft(), device, stream, work)
                    window.append(tensor)
                    size += tensor.extent.nbytes
                tensor = window.popleft()
                while tensor.missing:
                    if (error := arrivals.get()) is not None:
                        raise error
                if stream is not None:
                    torch.cuda.current_stream(device).wait_stream(stream)
                size -= tensor.extent.nbytes
                name, whole = tensor.name, tensor.whole
                del tensor  # drop our references: the caller may free the tensor
                yield name, whole
                del whole
        finally:
            stop.set()
            for _ in range(count):
                work.put(None)


def _reserve(sizes: Sequence[int], device: torch.device) -> None:
    """Let torch's allocator take memory for tensors of so many bytes at once.

    The driver takes milliseconds for each allocation, and copies wait meanwhile.
    """
    total = sum(-(-size // ALLOCATION_BYTES) * ALLOCATION_BYTES for size in sizes)
    with suppress(torch.OutOfMemoryError):  # one by one, they may fit nevertheless
        torch.empty(total, dtype=torch.uint8, device=device)


def _begin(name: str, extent: Extent, device: torch.device, stream: torch.cuda.Stream | None, work: Work) -> _InFlight:
    """Allocate a tensor and queue its pieces."""
    whole = torch.empty(extent.shape, dtype=extent.dtype, device=device)
    if stream is not None:  # earlier work may still use the tensor's memory
        stream.wait_stream(torch.cuda.current_stream(device))
    pieces = list(extent.pieces())
    tensor = _InFlight(name, extent, whole, whole.view(-1).view(torch.uint8), len(pieces))
    for offset, end in pieces:
        work.put((tensor, offset, end))
    return tensor


class _HostCopies:
    """Copies pieces from a buffer to tensors of the host, in the thread that enters it."""

    def __init__(self) -> None:
        self._memory = torch.empty(PIECE_BYTES, dtype=torch.uint8)
        self._buffer = PieceBuffer(self._memory)

    def __enter__(self) -> "_HostCopies":
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until all is copied."""

    def buffer(self) -> PieceBuffer:
        """Return a buffer that is free."""
        return self._buffer

    def copy(self, target: Tensor) -> None:
        """Copy bytes from the buffer that was returned last."""
        target.copy_(self._memory[: target.numel()])


class _GpuCopies(_HostCopies):
    """Copies pieces on a stream, from two pinned buffers in turns: one is filled while the other is copied."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream, self._current = stream, torch.cuda.stream(stream)
        self._memories = [torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._buffers = [PieceBuffer(memory) for memory in self._memories]
        self._copied = [torch.cuda.Event() for _ in range(2)]
        self._index = 0

    def __enter__(self) -> "_GpuCopies":
        self._current.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stream.synchronize()  # before the buffers are freed
        self._current.__exit__(*raised)

    def buffer(self) -> PieceBuffer:
        self._index = 1 - self._index
        self._copied[self._index].synchronize()
        return self._buffers[self._index]

    def copy(self, target: Tensor) -> None:
        target.copy_(self._memories[self._index][: target.numel()], non_blocking=True)
        self._copied[self._index].record(self._stream)


def _run(work: Work, arrivals: Arrivals, stream: torch.cuda.Stream | None, stop: Event) -> None:
    """Read pieces in one thread, and copy them on the stream of a GPU."""
    try:
        with ExitStack() as opened:
            copies = opened.enter_context(_GpuCopies(stream) if stream is not None else _HostCopies())
            files: dict[Path, int] = {}
            while (piece := work.get()) is not None and not stop.is_set():
                tensor, offset, end = piece
                extent = tensor.extent
                if extent.file not in files:
                    files[extent.file] = opened.enter_context(extent.file.open("rb", buffering=0)).fileno()
                copies.buffer().read(files[extent.file], extent, offset, end - offset)
                copies.copy(tensor.flat[offset:end])
                if tensor.is_last():
                    arrivals.put(None)
                del piece, tensor  # so that the tensor can be freed
    except OSError as error:
        arrivals.put(CheckpointError(f"{error.filename} cannot be opened", COPY_AGAIN))
    except BaseException as error:
        arrivals.put(error)
