"""What LoRA adapters add to the products of decoding, B (A x), inside kernels that run anyway.

The kernel that makes x has each of its programs multiply the few elements that it writes by their columns of A, and add
that to sums in device memory. The kernel of the product adds B times the sums. If there is an RMSNorm between the two,
its weight is part of A, and its scale that of the whole product. Where no kernel of ours makes x, ``add_product`` does.

Sums are integers, in units that fit A's numbers, so that it does not matter in which order programs add.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mllama_cli.kernels.cuda.launch import gdc_launch_dependents, gdc_wait, launch

SUM_COPIES = tl.constexpr(4)
"""Programs take turns among so many copies of the sums, so that few of them add to the same address at once."""

UNITS = 2**30
"""Units of the sums in the largest number of A: they overflow for activations above 600,000 in 14,336 inputs."""

PRODUCT_COLUMNS = 64
"""Elements of x that a program of ``add_product`` multiplies."""


@dataclass(frozen=True)
class Sums:
    """Sums A x, int64 [batch, SUM_COPIES, ranks], in units of ``unit``. Zero before programs add to them."""

    copies: Tensor
    unit: float

    @staticmethod
    def size(batch: int, ranks: int) -> int:
        """Return how many integers the sums of ``batch`` rows take, in whole cache lines."""
        size: int = -(-batch * SUM_COPIES.value * ranks // 16) * 16
        return size

    @classmethod
    def of(cls, a: Tensor, batch: int, memory: Tensor) -> Self:
        """Return the sums of products with ``a`` [ranks, in], in memory of ``size`` integers."""
        ranks, largest = a.shape[0], float(a.abs().max())
        exponent = math.ceil(math.log2(largest)) if 0 < largest < math.inf else 0
        copies = memory[: batch * SUM_COPIES.value * ranks].view(batch, SUM_COPIES.value, ranks)
        return cls(copies, 2.0**exponent / UNITS)

    @property
    def ranks(self) -> int:
        return self.copies.shape[2]


@dataclass(frozen=True)
class Change:
    """What a product adds: ``b`` [blocks of rows, ranks, rows], as ``by_blocks`` makes it, times its matrix's sums."""

    b: Tensor
    sums: Sums


@dataclass(frozen=True)
class Following:
    """The A of a product that follows, by blocks of the rows that a program writes, and its sums."""

    a: Tensor
    sums: Sums


def by_blocks(matrix: Tensor, rows: int) -> Tensor:
    """Return [n, ranks] as [blocks, ranks, rows]: what a program reads, adjacent. The last rows may be zeros."""
    padded = F.pad(matrix, (0, 0, 0, -matrix.shape[0] % rows))
    blocks: Tensor = padded.unflatten(0, (-1, rows))
    return blocks.transpose(1, 2).contiguous()


@triton.constexpr_function
def passes_of(ranks, lanes):
    """Return how many ranks a lane has, rounded up to a power of two."""
    return triton.next_power_of_2(-(-ranks // lanes))


@triton.jit
def ranks_of(lanes, RANKS: tl.constexpr):
    """Return ranks [Q, 1, R] for Q lanes."""
    return (lanes[:, None] + tl.arange(0, passes_of(RANKS, lanes.shape[0]))[None, :] * lanes.shape[0])[:, None, :]


@triton.constexpr_function
def load_assembly(bits):
    """Return PTX that loads a number of so many bits from $1 where $2 is not zero; otherwise it is zero."""
    lines = "{\n.reg .pred there;\nsetp.ne.b32 there, $2, 0;\n"
    return f"{lines}mov.b{bits} $0, 0;\n@there ld.global.nc.b{bits} $0, [$1];\n}}"


@triton.jit
def load_ranks(matrix, block, ranks, RANKS: tl.constexpr, BLOCK_N: tl.constexpr, CAPABILITY: tl.constexpr):
    """Load the numbers [Q, N, R] of a block's rows at ``ranks`` [Q, 1, R]; zeros beyond RANKS.

    Each thread loads what it multiplies: Triton would load several numbers at once and move them, with two barriers.
    """
    offset = (block * RANKS + ranks) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :, None]
    there = ranks < RANKS
    if CAPABILITY > 0:
        here = tl.broadcast_to(there, offset.shape).to(tl.int32)
        element: tl.constexpr = matrix.dtype.element_ty
        if element.primitive_bitwidth == 16:
            bits = tl.inline_asm_elementwise(load_assembly(16), "=&h,l,r", [matrix + offset, here], tl.int16, True, 1)
        else:
            bits = tl.inline_asm_elementwise(load_assembly(32), "=&r,l,r", [matrix + offset, here], tl.int32, True, 1)
        return bits.to(element, bitcast=True)
    else:
        return tl.load(matrix + offset, mask=there, other=0.0)


@triton.jit
def load_sums(copies, ranks, unit, RANKS: tl.constexpr, TOTAL: tl.constexpr):
    """Load RANKS of TOTAL sums -> float32 like ``ranks``; zeros beyond."""
    there = ranks < RANKS
    total = tl.load(copies + ranks, mask=there, other=0)
    for copy in tl.static_range(1, SUM_COPIES):
        total += tl.load(copies + copy * TOTAL + ranks, mask=there, other=0)
    return total.to(tl.float32) * unit


@triton.jit
def add_to_sums(copies, program, ranks, parts, scale, TOTAL: tl.constexpr):
    """Add a program's parts, times 1 / unit, to its copy of the TOTAL sums, at ``ranks``."""
    copy = copies + (program % SUM_COPIES) * TOTAL
    tl.atomic_add(copy + ranks, (parts * scale).to(tl.int64), mask=ranks < TOTAL, sem="relaxed")


@triton.jit
def add_product_kernel(
    x, a, copies, scale,
    K: tl.constexpr, TOTAL: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    gdc_launch_dependents(PDL)
    program = tl.program_id(0)
    batch = tl.program_id(1)
    columns = program * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < K
    copies += batch * SUM_COPIES * TOTAL
    for first in tl.static_range(0, TOTAL, RANKS):
        ranks = first + tl.arange(0, RANKS)
        there = ranks < TOTAL
        part = tl.load(a + ranks[:, None] * K + columns[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        if first == 0:
            gdc_wait(PDL)
            row = tl.load(x + batch * K + columns, mask=inside, other=0.0).to(tl.float32)
        add_to_sums(copies, program, ranks, tl.sum(part.to(tl.float32) * row[None, :], axis=1), scale, TOTAL)


def add_product(x: Tensor, a: Tensor, sums: Sums) -> None:
    """Add A x to the sums, for x [B, in] and A [ranks, in] in the same layout."""
    total, size = a.shape
    ranks = min(triton.next_power_of_2(total), 64)
    launch(
        add_product_kernel, (triton.cdiv(size, PRODUCT_COLUMNS), x.shape[0]), x, a, sums.copies, 1 / sums.unit,
        size, total, ranks, PRODUCT_COLUMNS, device=x.device, warps=4,
    )  # fmt: skip
