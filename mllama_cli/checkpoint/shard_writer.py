"""Write a safetensors file of which only names, dtypes and shapes are known at the start.

The header is written first, then pieces of the tensors in any order. Nothing is kept in memory.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from mllama_cli.checkpoint.header import STORED_DTYPES


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written; ``dtype`` by its safetensors name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * STORED_DTYPES[self.dtype].bits // 8


def layout(specs: Iterable[TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """Return the file's header, and each tensor's offset in the file.

    Wide dtypes come first, as in every safetensors file, so that each tensor in a mapped file is aligned.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin: dict[str, int] = {}
    end = 0
    for spec in sorted(specs, key=lambda spec: -STORED_DTYPES[spec.dtype].bits):
        begin[spec.name] = end
        end += spec.nbytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [begin[spec.name], end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in begin.items()}


class ShardWriter:
    """One file, with its full size reserved at the start, so that a full disk fails early. Raises OSError.

    A file that an earlier run started is continued; ``fresh`` is false then.
    """

    def __init__(self, path: Path, specs: Iterable[TensorSpec]) -> None:
        specs = list(specs)
        header, self._begin = layout(specs)
        size = len(header) + sum(spec.nbytes for spec in specs)
        self.fresh = not _begins_with(path, header, size)
        self._file: FileIO = path.open("w+b" if self.fresh else "r+b", buffering=0)
        if self.fresh:
            try:
                reserve(self._file, size)
                self._write(0, memoryview(header))
            except OSError:
                self._file.close()
                raise

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, name: str, data: Tensor, offset: int = 0) -> int:
        """Write a piece of a tensor at ``offset`` bytes from its start; return the offset after it."""
        flat = data.detach().cpu().contiguous().reshape(-1)
        self._write(self._begin[name] + offset, flat.view(torch.uint8).numpy().data)
        return offset + flat.nbytes

    def sync(self) -> None:
        """Flush everything that was written to the disk."""
        os.fsync(self._file.fileno())

    def _write(self, position: int, data: memoryview) -> None:
        self._file.seek(position)
        done = 0
        while done < len(data):
            done += self._file.write(data[done:])


def reserve(file: FileIO, size: int) -> None:
    """Set the file's size, and allocate it on the disk if the system can. Raise OSError."""
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def _begins_with(path: Path, header: bytes, size: int) -> bool:
    try:
        with path.open("rb") as file:
            return path.stat().st_size == size and file.read(len(header)) == header
    except FileNotFoundError:
        return False
