"""Tensors of other file formats that are decoded slice by slice as they are read."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mllama_cli.checkpoint.stored import StoredTensor

ReadBytes = Callable[[Path, int, int], Tensor]
"""Returns so many bytes of a file from an offset on, as a flat uint8 tensor."""


@dataclass(frozen=True)
class DecodedTensor(StoredTensor, ABC):
    """A tensor whose ``info`` has the dtype and shape that it gets, and its range of bytes in the file."""

    @abstractmethod
    def rows(self, read: ReadBytes, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) of the first dimension. Raise CheckpointError."""
