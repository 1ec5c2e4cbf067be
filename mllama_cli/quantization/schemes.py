"""How one matrix is stored in fewer bits."""

from dataclasses import dataclass

from mllama_cli.core.errors import UsageError
from mllama_cli.core.settings import QUANTIZATIONS

GROUP_SIZES = (128, 64, 32)
"""Sizes that we quantize to; others are read."""


@dataclass(frozen=True, order=True)
class Scheme:
    """Symmetric whole numbers of ``bits`` bits; ``group_size`` neighbours along the input dimension share a scale.

    0 means all inputs of a row: one scale per channel.
    """

    bits: int
    group_size: int

    def groups(self, inputs: int) -> int:
        """Scales of a row with that many inputs."""
        return inputs // self.group_size if self.group_size else 1

    def words(self, inputs: int) -> int:
        """int32 words of a row."""
        return -(-inputs * self.bits // 32)

    def divides(self, inputs: int) -> bool:
        return not self.group_size or inputs % self.group_size == 0

    def fitted(self, inputs: int) -> "Scheme":
        """This scheme, or the next finer one whose groups divide the inputs; one per channel where none does."""
        for size in (self.group_size, *(size for size in GROUP_SIZES if size < self.group_size)):
            if Scheme(self.bits, size).divides(inputs):
                return Scheme(self.bits, size)
        return Scheme(self.bits, 0)

    def __str__(self) -> str:
        return f"{self.bits} bit, " + (f"groups of {self.group_size}" if self.group_size else "per channel")


PER_CHANNEL_8 = Scheme(8, 0)


def scheme_named(name: str) -> Scheme:
    """Return the scheme of "int4" or "int8", as quantizing while loading offers it. Raises UsageError for another."""
    if name not in QUANTIZATIONS:
        raise UsageError(f"Unknown quantization {name!r}", f"Use {' or '.join(QUANTIZATIONS)}.")
    return Scheme(int(name.removeprefix("int")), GROUP_SIZES[0])
