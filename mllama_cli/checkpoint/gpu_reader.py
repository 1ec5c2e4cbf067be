"""Read weights from files to a GPU: threads read pieces into pinned memory while earlier ones are copied."""

import os
import queue
from collections.abc import Iterator, Sequence
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
class _Piece:
    """A read at ``start`` of a file into ``target``, the bytes of a part of a tensor on the GPU."""

    file: Path
    start: int
    target: Tensor


def read_to_gpu(tensors: Sequence[tuple[str, StoredTensor]], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor on the GPU, in its stored dtype) in the given order, each when it is complete.

    At most WINDOW_BYTES, or one tensor, are read ahead. Raises CheckpointError, with the file's name, if a file cannot
    be read or ends early.
    """
    window: list[tuple[str, StoredTensor]] = []
    size = 0
    for name, stored in tensors:
        if window and size + stored.nbytes > WINDOW_BYTES:
            yield from _read_window(window, device)
            window, size = [], 0
        window.append((name, stored))
        size += stored.nbytes
    yield from _read_window(window, device)


def _read_window(tensors: Sequence[tuple[str, StoredTensor]], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    device = torch.empty(0, device=device).device  # with its index: new threads don't inherit the current device
    stop = Event()
    arrived: list[Arrivals] = [queue.SimpleQueue() for _ in tensors]
    wholes = [torch.empty(t.info.shape, dtype=torch_dtype(t.info), device=device) for _, t in tensors]
    work: queue.SimpleQueue[tuple[int, _Piece]] = queue.SimpleQueue()
    for number, ((_, stored), whole) in enumerate(zip(tensors, wholes, strict=True)):
        flat = whole.view(-1).view(torch.uint8)
        for start in range(0, stored.nbytes, PIECE_BYTES):
            work.put((number, _Piece(stored.file, stored.info.start + start, flat[start : start + PIECE_BYTES])))
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(device))  # earlier work may still use the tensors' memory
    count = min(READER_THREADS, os.cpu_count() or 1)
    with ThreadPool(count) as threads:
        try:
            for _ in range(count):
                threads.submit(_run, work, arrived, device, ready, stop)
            for number, (name, stored) in enumerate(tensors):
                for _ in range(0, stored.nbytes, PIECE_BYTES):
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
                if piece.file not in files:
                    files[piece.file] = opened.enter_context(piece.file.open("rb", buffering=0)).fileno()
                if (event := busy[buffer]) is not None:
                    event.synchronize()
                source = buffers[buffer][: piece.target.numel()]
                _read(files[piece.file], piece, source)
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
    done = 0
    while done < len(view):
        try:
            count = os.preadv(file, [view[done:]], piece.start + done)
        except OSError as error:
            raise CheckpointError(f"{piece.file} cannot be read: {error.strerror}", COPY_AGAIN) from error
        if count == 0:
            raise CheckpointError(f"{piece.file} ends early", COPY_AGAIN)
        done += count
