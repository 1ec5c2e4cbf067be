"""Read weights from files to a GPU: threads read pieces into pinned memory while earlier ones are copied."""

import os
import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch
from torch import Tensor

from mllama_cli.checkpoint.reader import torch_dtype
from mllama_cli.checkpoint.stored import StoredTensor
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.system.interrupts import ThreadPool

PIECE_BYTES = 16 * 2**20
"""Bytes of one read."""

WINDOW_BYTES = 2**30
"""Bytes of tensors in flight."""

READER_THREADS = 8

Arrivals = queue.SimpleQueue[torch.cuda.Event | BaseException]


@dataclass(frozen=True)
class Extent:
    """The bytes of a tensor, or of some of its rows and columns, in a file: ``rows`` runs of ``run`` bytes."""

    file: Path
    start: int
    run: int
    rows: int
    stride: int
    """Bytes from the start of one run to that of the next."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, stored: StoredTensor, part: tuple[slice, slice] | None = None) -> "Extent":
        """Return the extent of a stored tensor, or of the rows and columns ``part`` of a matrix."""
        info, dtype = stored.info, torch_dtype(stored.info)
        if part is None:
            return cls(stored.file, info.start, stored.nbytes, 1, stored.nbytes, info.shape, dtype)
        rows, columns = part
        width, size = info.shape[1], dtype.itemsize
        height, count = rows.stop - rows.start, columns.stop - columns.start
        start = info.start + (rows.start * width + columns.start) * size
        if count == width:
            run = height * width * size
            return cls(stored.file, start, run, 1, run, (height, count), dtype)
        return cls(stored.file, start, count * size, height, width * size, (height, count), dtype)

    @property
    def nbytes(self) -> int:
        return self.rows * self.run

    def reads(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, end) of its bytes for each read: whole runs where they are short."""
        step = PIECE_BYTES if self.rows == 1 else max(1, PIECE_BYTES // self.run) * self.run
        for offset in range(0, self.nbytes, step):
            yield offset, min(offset + step, self.nbytes)


@dataclass(frozen=True)
class _Piece:
    """A read of the bytes from ``offset`` on of an extent into ``target``, bytes on the GPU."""

    extent: Extent
    offset: int
    target: Tensor

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Yield (position in the file, first byte, end) for each run of the target's bytes."""
        extent, count = self.extent, self.target.numel()
        if extent.rows == 1:
            yield extent.start + self.offset, 0, count
            return
        for first in range(0, count, extent.run):
            yield extent.start + (self.offset + first) // extent.run * extent.stride, first, first + extent.run


def read_to_gpu(
    tensors: Sequence[tuple[str, StoredTensor]],
    device: torch.device,
    parts: Mapping[str, tuple[slice, slice]] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor on the GPU, in its stored dtype) in the given order, each when it is complete.

    Of matrices in ``parts``, only these rows and columns are read. At most WINDOW_BYTES, or one tensor, are read ahead.
    Raises CheckpointError, with the file's name, if a file cannot be read or ends early.
    """
    parts = parts or {}
    window: list[tuple[str, Extent]] = []
    size = 0
    for name, stored in tensors:
        extent = Extent.of(stored, parts.get(name))
        if window and size + extent.nbytes > WINDOW_BYTES:
            yield from _read_window(window, device)
            window, size = [], 0
        window.append((name, extent))
        size += extent.nbytes
    yield from _read_window(window, device)


def _read_window(tensors: Sequence[tuple[str, Extent]], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    device = torch.empty(0, device=device).device  # with its index: new threads don't inherit the current device
    stop = Event()
    arrived: list[Arrivals] = [queue.SimpleQueue() for _ in tensors]
    wholes = [torch.empty(extent.shape, dtype=extent.dtype, device=device) for _, extent in tensors]
    work: queue.SimpleQueue[tuple[int, _Piece]] = queue.SimpleQueue()
    for number, ((_, extent), whole) in enumerate(zip(tensors, wholes, strict=True)):
        flat = whole.view(-1).view(torch.uint8)
        for start, end in extent.reads():
            work.put((number, _Piece(extent, start, flat[start:end])))
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(device))  # earlier work may still use the tensors' memory
    count = min(READER_THREADS, os.cpu_count() or 1)
    with ThreadPool(count) as threads:
        try:
            for _ in range(count):
                threads.submit(_run, work, arrived, device, ready, stop)
            for number, (name, extent) in enumerate(tensors):
                for _ in extent.reads():
                    event = arrived[number].get()
                    if isinstance(event, BaseException):
                        raise event
                    torch.cuda.current_stream(device).wait_event(event)
                yield name, wholes[number]
                wholes[number] = torch.empty(0)  # drop our reference: the caller may free the tensor
        finally:
            stop.set()


def _run(
    work: "queue.SimpleQueue[tuple[int, _Piece]]",
    arrived: "list[Arrivals]",
    device: torch.device,
    ready: torch.cuda.Event,
    stop: Event,
) -> None:
    """Read pieces in one thread, double-buffered: one piece is copied while the next is read."""
    try:
        stream = torch.cuda.Stream(device)
        stream.wait_event(ready)
        buffers = [torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        busy: list[torch.cuda.Event | None] = [None, None]
        buffer = 0
        with ExitStack() as opened, torch.cuda.stream(stream):
            files: dict[Path, int] = {}
            while not stop.is_set():
                try:
                    number, piece = work.get_nowait()
                except queue.Empty:
                    break
                path = piece.extent.file
                if path not in files:
                    files[path] = opened.enter_context(path.open("rb", buffering=0)).fileno()
                if (event := busy[buffer]) is not None:
                    event.synchronize()
                source = buffers[buffer][: piece.target.numel()]
                _read(files[path], piece, source)
                piece.target.copy_(source, non_blocking=True)
                event = torch.cuda.Event()
                event.record(stream)
                busy[buffer], buffer = event, 1 - buffer
                arrived[number].put(event)
            stream.synchronize()  # before the buffers are freed
    except BaseException as error:
        for queue_ in arrived:  # whichever the reader waits for
            queue_.put(
                CheckpointError(f"{error.filename} cannot be opened", COPY_AGAIN)
                if isinstance(error, OSError)
                else error
            )


def _read(file: int, piece: _Piece, buffer: Tensor) -> None:
    view = buffer.numpy().data
    for position, first, end in piece.runs():
        done = first
        while done < end:
            try:
                count = os.preadv(file, [view[done:end]], position + done - first)
            except OSError as error:
                raise CheckpointError(f"{piece.extent.file} cannot be read: {error.strerror}", COPY_AGAIN) from error
            if count == 0:
                raise CheckpointError(f"{piece.extent.file} ends early", COPY_AGAIN)
            done += count
