"""What a file holds: plain tensors, and those of other tools and formats, which are decoded. Imports no torch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mllama_cli.checkpoint.header import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

    from mllama_cli.kernels.codes import Code
    from mllama_cli.kernels.packed import PackedWeight


@dataclass(frozen=True)
class StoredTensor:
    """A weight's file, its name there, and its header entry."""

    file: Path
    stored_name: str
    info: TensorInfo

    @property
    def nbytes(self) -> int:
        """Return its bytes in the file."""
        return self.info.nbytes

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)


ReadBytes = Callable[[Path, int, int], "Tensor"]
"""Returns so many bytes of a file from an offset on, as a flat uint8 tensor."""


@dataclass(frozen=True)
class DecodedTensor(StoredTensor, ABC):
    """A tensor that is decoded row by row. ``info`` has the dtype and shape that it gets, and its bytes in the file."""

    @abstractmethod
    def rows(self, read: ReadBytes, start: int, stop: int) -> "Tensor":
        """Return rows [start, stop) of the first dimension. Raise CheckpointError."""


@dataclass(frozen=True)
class Packing:
    """Numbers of a ``code`` in our packed layout; ``group_size`` 0 means one scale for each row."""

    bits: int
    group_size: int
    code: "Code" = "int"


@dataclass(frozen=True)
class Form:
    """How another tool stores one matrix: all that is needed to decode it from its parts.

    Attributes:
        label: for users, such as "bitsandbytes nf4".
        bits: of one weight, without scales.
        dtype: of the dense matrix, by its safetensors name.
        shape: of the dense matrix, (out, in).
        dense: makes that matrix from the parts, on their device.
        packing: our packed layout that holds exactly the same numbers and scales, if there is one.
        packed: makes it from the parts.
        ours: whether the parts are those of our packed layout, so that they are read as they are.
    """

    label: str
    bits: int
    dtype: str
    shape: tuple[int, int]
    dense: "Callable[[Mapping[str, Tensor]], Tensor]"
    packing: Packing | None = None
    packed: "Callable[[Mapping[str, Tensor]], PackedWeight] | None" = None
    ours: bool = False


@dataclass(frozen=True)
class StoredMatrix(StoredTensor):
    """A matrix in another tool's form. ``info`` describes the dense matrix, whose bytes are in no file.

    ``parts`` are the stored tensors by the ends of their names, such as ".weight.absmax".
    """

    form: Form
    parts: Mapping[str, StoredTensor]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(part.file for part in self.parts.values()))


def stored_matrix(name: str, form: Form, parts: Mapping[str, StoredTensor]) -> StoredMatrix:
    """Return the matrix that a file would call ``name`` if it were dense; its main part comes first."""
    main = next(iter(parts.values()))
    info = TensorInfo(form.dtype, form.shape, main.info.start, main.info.start)
    return StoredMatrix(main.file, name, info, form, parts)
