"""The stored tensors of one matrix, with the checks that every form needs. Imports no torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mllama_cli.checkpoint.stored import Form, StoredTensor
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.core.text import shown

if TYPE_CHECKING:
    from torch import Tensor

MAX_SMALL_BYTES = 64 * 2**20
"""Bytes of a part that is read in order to recognize a matrix: zero points of the 90B's largest take 1 MB."""

BLOCK_ELEMENTS = 1 << 23
"""Weights decoded at once, so that wider intermediate numbers take little memory."""

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Parts:
    """The tensors of the matrix of ``module``, by the ends of their names; ``declared`` is quantization_config."""

    module: str
    tensors: Mapping[str, StoredTensor]
    declared: Mapping[str, Any] = field(default_factory=dict)

    def __contains__(self, end: str) -> bool:
        return end in self.tensors

    def shape(self, end: str, *shape: int, dtypes: Sequence[str] = FLOATS) -> tuple[int, ...]:
        """Return the shape of a part. Raise CheckpointError if it is missing or has another dtype or shape.

        A dimension of -1 may have any positive size; without ``shape`` only the dtype is checked.
        """
        stored = self.tensors.get(end)
        if stored is None:
            raise CheckpointError(f"{self._where}: {self.module}{end} is missing", COPY_AGAIN)
        info = stored.info
        if info.dtype not in dtypes:
            raise self.wrong(end, f"is stored as {info.dtype}, not {' or '.join(dtypes)}")
        fits = len(info.shape) == len(shape) and all(
            found == wanted or (wanted == -1 and found > 0) for found, wanted in zip(info.shape, shape, strict=True)
        )
        if shape and not fits:
            wanted = ", ".join("any" if size == -1 else str(size) for size in shape)
            raise self.wrong(end, f"has shape {shown(list(info.shape))}, which should be [{wanted}]")
        return info.shape

    def elements(self, end: str, count: int, dtypes: Sequence[str] = FLOATS) -> None:
        """Raise CheckpointError unless the part has ``count`` elements, in any shape."""
        shape = self.shape(end, dtypes=dtypes)
        if math.prod(shape) != count:
            raise self.wrong(end, f"has {math.prod(shape)} elements, which should be {count}")

    def data(self, end: str) -> bytes:
        """Return the bytes of a small part."""
        stored = self.tensors[end]
        if stored.nbytes > MAX_SMALL_BYTES:
            raise self.wrong(end, f"has {stored.nbytes} bytes, more than any model's")
        try:
            with stored.file.open("rb") as file:
                file.seek(stored.info.start)
                return file.read(stored.nbytes)
        except OSError as error:
            raise CheckpointError(f"{stored.file} cannot be read: {error.strerror}", COPY_AGAIN) from error

    def integers(self, end: str) -> tuple[int, ...]:
        """Return the numbers in a small part of signed integers."""
        data, size = self.data(end), {"I32": 4, "I64": 8}[self.tensors[end].info.dtype]
        return tuple(int.from_bytes(data[i : i + size], "little", signed=True) for i in range(0, len(data), size))

    def wrong(self, end: str, problem: str) -> CheckpointError:
        """Return the error for a part that cannot be what its name says."""
        return CheckpointError(f"{self._where}: {self.module}{end} {problem}", COPY_AGAIN)

    @property
    def _where(self) -> str:
        return str(next(iter(self.tensors.values())).file)


@dataclass(frozen=True)
class Row:
    """A line of the table of forms.

    Attributes:
        markers: ends of names by which the form is recognized.
        ends: of all tensors that may belong to such a matrix, the main one first.
        recognize: returns the form. Raises CheckpointError.
        unless: ends of another row, whose matrix it then is.
    """

    markers: tuple[str, ...]
    ends: tuple[str, ...]
    recognize: Callable[[Parts], Form]
    unless: tuple[str, ...] = ()


def row_blocks(rows: int, inputs: int) -> list[slice]:
    """Return slices of rows to decode one after the other."""
    step = max(1, BLOCK_ELEMENTS // inputs)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def require_finite(scale: "Tensor", label: str) -> "Tensor":
    """Return ``scale``. Raise CheckpointError if it holds NaN or infinity."""
    if not bool(scale.isfinite().all()):
        raise CheckpointError(f"A scale of a matrix in the form {label} is not finite: the file is damaged", COPY_AGAIN)
    return scale
