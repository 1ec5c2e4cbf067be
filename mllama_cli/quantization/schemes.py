"""How one matrix is stored in fewer bits."""

from dataclasses import dataclass

from mllama_cli.kernels.packed import BITS

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
    """int4 or int8, in groups of 128: what quantizing while loading offers. Raises KeyError."""
    return {f"int{bits}": Scheme(bits, GROUP_SIZES[0]) for bits in BITS}[name]
