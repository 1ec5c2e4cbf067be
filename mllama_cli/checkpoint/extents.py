"""The bytes of tensors, or of some of their rows and columns, in files, and how they are read piece by piece."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mllama_cli.checkpoint.reader import torch_dtype
from mllama_cli.checkpoint.stored import StoredTensor
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError

PIECE_BYTES = 8 * 2**20
"""Bytes of one piece."""

MAX_SKIPPED_BYTES = 2**17
"""Bytes between two runs up to which they are read and dropped: a call for each run would take longer."""

MAX_VECTORS = 1024
"""Parts of memory that one call fills: the limit of Linux."""


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

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, end) of its bytes for each piece: whole runs, or a part of one."""
        whole = max(1, PIECE_BYTES // max(self.run, 1)) * max(self.run, 1)
        for first in range(0, self.nbytes, whole):
            end = min(first + whole, self.nbytes)
            for offset in range(first, end, PIECE_BYTES):
                yield offset, min(offset + PIECE_BYTES, end)


class PieceBuffer:
    """Memory that pieces are read into, one after the other. Not thread-safe."""

    def __init__(self, memory: torch.Tensor) -> None:
        """Take flat bytes, which stay the caller's: PIECE_BYTES."""
        self._view: memoryview = memory.numpy().data
        self._skipped = memoryview(bytearray(MAX_SKIPPED_BYTES))
        self._scattered: dict[tuple[int, int], list[memoryview]] = {}

    def read(self, file: int, extent: Extent, offset: int, count: int) -> None:
        """Read ``count`` bytes of an extent, of which ``file`` is open, from ``offset`` on.

        Raise CheckpointError, with the file's name, if it cannot be read or ends early.
        """
        run, inside = divmod(offset, extent.run)
        position = extent.start + run * extent.stride + inside
        if count <= extent.run:
            _fill(file, extent, position, [self._view[:count]])
            return
        rows, skipped = count // extent.run, extent.stride - extent.run
        if skipped > MAX_SKIPPED_BYTES:
            for row in range(rows):
                target = self._view[row * extent.run : (row + 1) * extent.run]
                _fill(file, extent, position + row * extent.stride, [target])
            return
        vectors = self._vectors(extent.run, skipped)
        for row in range(0, rows, MAX_VECTORS // 2):
            end = min(row + MAX_VECTORS // 2, rows)
            _fill(file, extent, position + row * extent.stride, vectors[2 * row : 2 * end - 1])

    def _vectors(self, run: int, skipped: int) -> list[memoryview]:
        """Return the memory of each run, and after each what takes the bytes up to the next."""
        if (run, skipped) not in self._scattered:
            between = self._skipped[:skipped]
            runs = [self._view[start : start + run] for start in range(0, len(self._view) - run + 1, run)]
            self._scattered[run, skipped] = [vector for each in runs for vector in (each, between)]
        return self._scattered[run, skipped]


def _fill(file: int, extent: Extent, position: int, vectors: list[memoryview]) -> None:
    """Read from a position on until all of ``vectors`` are full."""
    while vectors:
        try:
            count = os.preadv(file, vectors, position)
        except OSError as error:
            raise CheckpointError(f"{extent.file} cannot be read: {error.strerror}", COPY_AGAIN) from error
        if count == 0:
            raise CheckpointError(f"{extent.file} ends early", COPY_AGAIN)
        position += count
        vectors = _behind(vectors, count)


def _behind(vectors: list[memoryview], count: int) -> list[memoryview]:
    """Return what follows the first ``count`` bytes of ``vectors``."""
    for index, vector in enumerate(vectors):
        if count < len(vector):
            return [vector[count:], *vectors[index + 1 :]]
        count -= len(vector)
    return []
