"""The bytes of tensors, or of some of their rows and columns, in files, and how they are read piece by piece."""

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mllama_cli.checkpoint.reader import torch_dtype
from mllama_cli.checkpoint.stored import StoredTensor
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError

PIECE_BYTES = 8 * 2**20
"""Bytes of one piece."""

MADV_POPULATE_READ = 22

Bytes = npt.NDArray[np.uint8]


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
        self._bytes: Bytes = memory.numpy()
        self._can_map = sys.platform == "linux"

    def read(self, file: int, extent: Extent, offset: int, count: int) -> None:
        """Read ``count`` bytes of an extent, of which ``file`` is open, from ``offset`` on.

        Raise CheckpointError, with the file's name, if it cannot be read or ends early.
        """
        run, inside = divmod(offset, extent.run)
        position = extent.start + run * extent.stride + inside
        if count <= extent.run:
            _fill(file, extent, position, self._bytes[:count])
            return
        runs = self._bytes[:count].reshape(-1, extent.run)
        self._can_map = self._can_map and _copy_mapped(file, position, extent.stride, runs)
        if not self._can_map:
            for index, target in enumerate(runs):
                _fill(file, extent, position + index * extent.stride, target)


def _fill(file: int, extent: Extent, position: int, target: Bytes) -> None:
    done = 0
    while done < len(target):
        try:
            count = os.preadv(file, [target[done:].data], position + done)
        except OSError as error:
            raise CheckpointError(f"{extent.file} cannot be read: {error.strerror}", COPY_AGAIN) from error
        if count == 0:
            raise CheckpointError(f"{extent.file} ends early", COPY_AGAIN)
        done += count


def _copy_mapped(file: int, position: int, stride: int, runs: Bytes) -> bool:
    """Fill ``runs`` [runs, bytes], which begin ``stride`` bytes apart in a file, from its pages.

    Two calls read what would take one for each run, and nothing between the runs is copied. Return False where pages
    cannot be mapped, as before Linux 5.14, or not read: then reads say why.
    """
    start = position // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    count, run = runs.shape
    try:
        with mmap.mmap(file, position - start + (count - 1) * stride + run, prot=mmap.PROT_READ, offset=start) as pages:
            return _copy_runs(pages, position - start, stride, runs)
    except (OSError, ValueError):  # the latter if the file ends early
        return False


def _copy_runs(pages: mmap.mmap, first: int, stride: int, runs: Bytes) -> bool:
    """Let the system map all pages, which fails where touching them would end this process, and copy the runs."""
    whole = np.frombuffer(pages, np.uint8)
    if _madvise()(ctypes.c_void_p(whole.ctypes.data), ctypes.c_size_t(len(whole)), MADV_POPULATE_READ):
        return False
    np.copyto(runs, np.ndarray(runs.shape, np.uint8, whole, first, (stride, 1)))
    return True


@cache
def _madvise() -> Callable[..., int]:
    """Return the system's function, which is called without Python's lock, unlike that of ``mmap``."""
    return ctypes.CDLL(None).madvise
