"""Read slices of stored tensors into memory.

Uses plain reads because a mapped file's pages count as the process's memory, and a checkpoint may exceed the machine's.
"""

from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from mllama_cli.checkpoint.reader import torch_dtype
from mllama_cli.checkpoint.stored import DecodedTensor, StoredMatrix, StoredTensor
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError


class SliceReader:
    """Read slices of tensors; files stay open until ``close``. Not thread-safe.

    A matrix in another tool's form is decoded whole, and kept while slices of it are read.
    """

    def __init__(self) -> None:
        self._files: dict[Path, FileIO] = {}
        self._decoded: tuple[StoredMatrix, Tensor] | None = None

    def __enter__(self) -> "SliceReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._decoded = None

    def rows(self, stored: StoredTensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return rows [start, stop) of the first dimension; all by default. Raise CheckpointError."""
        if isinstance(stored, StoredMatrix):
            return self._matrix(stored)[start:stop]
        shape = stored.info.shape
        rows = shape[0] if shape else 1
        stop = rows if stop is None else min(stop, rows)
        if isinstance(stored, DecodedTensor):
            return stored.rows(self.raw_bytes, start, stop)
        row = stored.nbytes // max(rows, 1)
        data = self.raw_bytes(stored.file, stored.info.start + start * row, (stop - start) * row)
        values = data.view(torch_dtype(stored.info))
        return values.view(stop - start, *shape[1:]) if shape else values.view(())

    def raw_bytes(self, path: Path, offset: int, count: int) -> Tensor:
        """Return bytes of a file as a flat uint8 tensor. Raise CheckpointError."""
        data = torch.empty(count, dtype=torch.uint8)
        self._read(path, offset, data.numpy().data)
        return data

    def _matrix(self, stored: StoredMatrix) -> Tensor:
        if self._decoded is None or self._decoded[0] is not stored:
            self._decoded = None  # free it first
            parts = {end: self.rows(part) for end, part in stored.parts.items()}
            self._decoded = stored, stored.form.dense(parts)
        return self._decoded[1]

    def _read(self, path: Path, offset: int, into: memoryview) -> None:
        try:
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = path.open("rb", buffering=0)
            file.seek(offset)
            done = 0
            while done < len(into):
                count = file.readinto(into[done:])
                if not count:
                    raise CheckpointError(f"{path} is cut short", COPY_AGAIN)
                done += count
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read: {error.strerror}", "Check the file and its rights."
            ) from error
