"""Quantization schemes: bits and group size of a matrix."""

import math
from dataclasses import dataclass, replace

from mllama_cli.core.errors import UsageError
from mllama_cli.core.settings import QUANTIZATIONS
from mllama_cli.kernels.codes import TABLES, Code

GROUP_SIZES = (128, 64, 32)
"""Sizes that we write; others can be read."""


@dataclass(frozen=True, order=True)
class Scheme:
    """Numbers of ``bits`` bits; ``group_size`` neighbours along the input dimension share a scale.

    A group size of 0 means one scale per row (output channel). We quantize to symmetric integers; other codes are those
    of other tools' files.
    """

    bits: int
    group_size: int
    code: Code = "int"

    def groups(self, inputs: int) -> int:
        """Return the number of scales in a row."""
        return inputs // self.group_size if self.group_size else 1

    def words(self, inputs: int) -> int:
        """Return the number of int32 words in a row."""
        return -(-inputs * self.bits // 32)

    def nbytes(self, rows: int, inputs: int, scale_bytes: int = 2) -> int:
        """Return the bytes of a packed matrix; scales of a table are float32."""
        scale_bytes = 4 if self.code in TABLES else scale_bytes
        return rows * (4 * self.words(inputs) + scale_bytes * self.groups(inputs))

    def divides(self, inputs: int) -> bool:
        return not self.group_size or inputs % self.group_size == 0

    def fitted(self, inputs: int) -> "Scheme":
        """Return this scheme, or the next finer one whose groups divide the inputs, or one scale per channel."""
        for size in (self.group_size, *(size for size in GROUP_SIZES if size < self.group_size)):
            if (finer := replace(self, group_size=size)).divides(inputs):
                return finer
        return replace(self, group_size=0)

    def of_columns(self, columns: slice) -> "Scheme":
        """Return the scheme of some columns: groups that they cut become smaller ones with the same scale."""
        if not self.group_size:
            return self
        return replace(self, group_size=math.gcd(self.group_size, columns.start, columns.stop - columns.start))

    def __str__(self) -> str:
        return f"{self.bits} bit, " + (f"groups of {self.group_size}" if self.group_size else "per channel")


PER_CHANNEL_8 = Scheme(8, 0)


def scheme_named(name: str) -> Scheme:
    """Return the scheme of "int4" or "int8" for quantizing while loading. Raises UsageError for another name."""
    if name not in QUANTIZATIONS:
        raise UsageError(f"Unknown quantization {name!r}", f"Use {' or '.join(QUANTIZATIONS)}.")
    return Scheme(int(name.removeprefix("int")), GROUP_SIZES[0])
