"""Read weights from files to a device: threads read pieces into pinned memory while earlier ones are copied."""

import os
import queue
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch
from torch import Tensor

from mllama_cli.checkpoint.extents import PIECE_BYTES, Extent, PieceBuffer
from mllama_cli.checkpoint.stored import StoredTensor
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.system.interrupts import ThreadPool

WINDOW_BYTES = 2**30
"""Bytes of tensors in flight."""

MAX_READER_THREADS = 16


@dataclass
class _InFlight:
    """A tensor that is being read: ``ready`` is the moment from which its memory may be written to."""

    name: str
    extent: Extent
    whole: Tensor
    ready: torch.cuda.Event | None
    missing: int
    """Pieces that have yet to arrive."""


@dataclass(frozen=True)
class _Piece:
    """Bytes of a tensor in flight. ``target`` is their memory on the device."""

    tensor: _InFlight
    offset: int
    target: Tensor


Work = queue.SimpleQueue[_Piece | None]
"""None ends a thread."""

Arrivals = queue.SimpleQueue[tuple[_InFlight, torch.cuda.Event | None] | BaseException]


def reader_threads(ranks: int = 1) -> int:
    """Return how many threads read in each of so many processes that load at the same time."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_READER_THREADS, usable // ranks))


def read_to_device(
    tensors: Sequence[tuple[str, StoredTensor]],
    device: torch.device,
    parts: Mapping[str, tuple[slice, slice]] | None = None,
    *,
    ranks: int = 1,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor on the device, in its stored dtype) in the given order, each when it is complete.

    Of matrices in ``parts``, only these rows and columns are read. At most WINDOW_BYTES, or one tensor, are read ahead.
    ``ranks`` is the number of processes that do so at the same time.
    Raise CheckpointError, with the file's name, if a file cannot be read or ends early.
    """
    parts = parts or {}
    coming = deque((name, Extent.of(stored, parts.get(name))) for name, stored in tensors)
    device = torch.empty(0, device=device).device  # with its index: new threads don't inherit the current device
    work, arrivals, stop = Work(), Arrivals(), Event()
    window: deque[_InFlight] = deque()
    size = 0
    count = min(reader_threads(ranks), sum(1 for _, extent in coming for _ in extent.pieces()))
    with ThreadPool(max(count, 1)) as threads:
        try:
            for _ in range(count):
                threads.submit(_run, work, arrivals, device, stop)
            while coming or window:
                while coming and (not window or size + coming[0][1].nbytes <= WINDOW_BYTES):
                    tensor = _begin(*coming.popleft(), device, work)
                    window.append(tensor)
                    size += tensor.extent.nbytes
                tensor = window.popleft()
                while tensor.missing:
                    _take(arrivals.get(), device)
                size -= tensor.extent.nbytes
                name, whole = tensor.name, tensor.whole
                del tensor  # drop our reference: the caller may free the tensor
                yield name, whole
                del whole
        finally:
            stop.set()
            for _ in range(count):
                work.put(None)


def _begin(name: str, extent: Extent, device: torch.device, work: Work) -> _InFlight:
    """Allocate a tensor and queue its pieces."""
    whole = torch.empty(extent.shape, dtype=extent.dtype, device=device)
    ready = None
    if device.type == "cuda":  # where earlier work may still use the tensor's memory
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(device))
    flat, pieces = whole.view(-1).view(torch.uint8), list(extent.pieces())
    tensor = _InFlight(name, extent, whole, ready, len(pieces))
    for offset, end in pieces:
        work.put(_Piece(tensor, offset, flat[offset:end]))
    return tensor


def _take(arrival: tuple[_InFlight, torch.cuda.Event | None] | BaseException, device: torch.device) -> None:
    """Let the current stream wait for a piece. Raise the error of a thread."""
    if isinstance(arrival, BaseException):
        raise arrival
    tensor, copied = arrival
    tensor.missing -= 1
    if copied is not None:
        torch.cuda.current_stream(device).wait_event(copied)


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

    def copy(self, piece: _Piece) -> torch.cuda.Event | None:
        """Copy a piece from the buffer that was returned last; return when it is there."""
        piece.target.copy_(self._memory[: piece.target.numel()])
        return None


class _GpuCopies(_HostCopies):
    """Copies pieces from two pinned buffers in turns: one is filled while the other is copied."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._current = torch.cuda.stream(self._stream)
        self._memories = [torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._buffers = [PieceBuffer(memory) for memory in self._memories]
        self._busy: list[torch.cuda.Event | None] = [None, None]
        self._index = 0

    def __enter__(self) -> "_GpuCopies":
        self._current.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stream.synchronize()  # before the buffers are freed
        self._current.__exit__(*raised)

    def buffer(self) -> PieceBuffer:
        self._index = 1 - self._index
        if (copied := self._busy[self._index]) is not None:
            copied.synchronize()
        return self._buffers[self._index]

    def copy(self, piece: _Piece) -> torch.cuda.Event | None:
        if piece.tensor.ready is not None:
            self._stream.wait_event(piece.tensor.ready)
        source = self._memories[self._index][: piece.target.numel()]
        piece.target.copy_(source, non_blocking=True)
        copied = self._busy[self._index] = torch.cuda.Event()
        copied.record(self._stream)
        return copied


def _run(work: Work, arrivals: Arrivals, device: torch.device, stop: Event) -> None:
    """Read pieces in one thread."""
    try:
        with ExitStack() as opened:
            copies = opened.enter_context(_GpuCopies(device) if device.type == "cuda" else _HostCopies())
            files: dict[Path, int] = {}
            while (piece := work.get()) is not None and not stop.is_set():
                extent = piece.tensor.extent
                if extent.file not in files:
                    files[extent.file] = opened.enter_context(extent.file.open("rb", buffering=0)).fileno()
                copies.buffer().read(files[extent.file], extent, piece.offset, piece.target.numel())
                arrivals.put((piece.tensor, copies.copy(piece)))
                del piece, extent  # which hold the tensor
    except OSError as error:
        arrivals.put(CheckpointError(f"{error.filename} cannot be opened", COPY_AGAIN))
    except BaseException as error:
        arrivals.put(error)
