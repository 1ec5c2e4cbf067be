"""Which tile multiplies one row by a matrix: chosen on an H200, by whole steps of the 11B where there was time.

The product that is fastest by itself need not be so in a step, where the kernel before it still runs when it starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import triton
from torch import Tensor

from mllama_cli.kernels.codes import TABLES
from mllama_cli.kernels.packed import PackedWeight


@dataclass(frozen=True)
class GemvTile:
    """Rows and columns (quads of words in packed weights) that a program reads at a time, and its warps."""

    rows: int
    columns: int
    warps: int
    programs: int = 0
    """Persistent programs for each multiprocessor; 0: one program for each tile."""
    registers: int | None = None
    """The most that a thread may use, where more would let fewer programs run at once."""
    chunks: int = 1
    """Of ``columns`` quads each, which a persistent program reads of a row at once."""

    @property
    def staged(self) -> bool:
        """Return whether a program's warps have rows of their own, and need operands that others made."""
        return self.chunks > 1 and self.columns < 32 * self.warps

    def takes(self, ranks: int) -> bool:
        """Return whether programs can add adapters of so many ranks in all: persistent ones hold their numbers."""
        return not self.programs or ranks <= self.columns * self.chunks


SINGLE, STACKED, GATED = "single", "stacked", "gated"
"""Products with one matrix, with several that one kernel reads, and with two of which the first gates the second."""

# Tiles by the quads of a row, rounded up to a power of two. STACKED is like SINGLE if left out.
INT4 = {
    SINGLE: {
        128: GemvTile(8, 64, 8, programs=2, registers=128, chunks=2),
        256: GemvTile(8, 128, 8, programs=2, registers=128, chunks=2),
        512: GemvTile(4, 256, 8, programs=2, registers=128, chunks=2),
        1024: GemvTile(4, 512, 16, programs=1, registers=128, chunks=2),
    },
    GATED: {
        128: GemvTile(4, 32, 4, programs=3, registers=168, chunks=4),
        256: GemvTile(4, 64, 8, programs=2, registers=128, chunks=4),
    },
}
TABLE = {
    SINGLE: INT4[SINGLE] | {128: GemvTile(4, 64, 4, programs=4, registers=128, chunks=2)},
    STACKED: INT4[SINGLE],
    GATED: INT4[GATED],
}
INT8 = {
    SINGLE: {
        256: GemvTile(8, 128, 4),
        512: GemvTile(8, 256, 8, programs=2, registers=128, chunks=2),
        1024: GemvTile(8, 256, 8, programs=1, chunks=4),
    },
    GATED: {
        256: GemvTile(4, 128, 8, programs=2, registers=128, chunks=2),
        512: GemvTile(2, 256, 8, programs=2, registers=128, chunks=2),
    },
}
FP8 = {
    SINGLE: {
        256: GemvTile(4, 128, 4, programs=5, registers=96, chunks=2),
        512: GemvTile(4, 256, 8, programs=2, registers=128, chunks=2),
        1024: GemvTile(2, 512, 8, programs=2, registers=128, chunks=2),
    },
    STACKED: {
        256: GemvTile(4, 256, 4, programs=4, registers=128),
        512: GemvTile(4, 256, 8, programs=2, registers=128, chunks=2),
    },
    GATED: {
        256: GemvTile(2, 128, 4, programs=5, registers=96, chunks=2),
        512: GemvTile(2, 256, 8, programs=2, registers=128, chunks=2),
    },
}
FORMATS = {("int", 4): INT4, ("int", 8): INT8, ("fp8", 8): FP8, **dict.fromkeys([(code, 4) for code in TABLES], TABLE)}
"""By code and bits."""

VOCABULARY = 65536
"""A matrix with more rows is that of the logits, and its kernel the only one that takes long."""


def choose_gemv_tile(weight: Tensor | PackedWeight, shapes: Sequence[tuple[int, int]], swiglu: bool) -> GemvTile:
    """Return the tile for matrices of these shapes, in the format of ``weight``."""
    rows, size_in = sum(shape[0] for shape in shapes), shapes[0][1]
    if not isinstance(weight, PackedWeight):
        columns = min(triton.next_power_of_2(size_in), 4096 if size_in <= 4096 else 2048)
        return GemvTile(4, columns, min(max(columns // 512, 1), 8))
    quads = triton.next_power_of_2(size_in * weight.bits // 128)
    if rows > VOCABULARY and quads <= 256 and weight.code not in TABLES:
        return GemvTile(4, quads, max(1, quads // 64), programs=8)
    if quads < 128:
        return GemvTile(4, quads, max(1, quads // 32), programs=4, registers=128)
    tiles = FORMATS[weight.code, weight.bits]
    kind = GATED if swiglu else STACKED if len(shapes) > 1 else SINGLE
    return tiles.get(kind, tiles[SINGLE]).get(quads, GemvTile(4, 128, 4))
