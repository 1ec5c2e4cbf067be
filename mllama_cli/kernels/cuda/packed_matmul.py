"""A few rows times a packed matrix, unpacked tile by tile on its way into the matrix units: what a batch's step costs.

The packed words are read once, whatever the number of rows up to BLOCK_M, and nothing unpacked ever lies in memory.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mllama_cli.kernels.cuda.launch import multiprocessors
from mllama_cli.kernels.cuda.packed_bits import unpacked
from mllama_cli.kernels.reference import PackedWeight


@triton.jit
def packed_matmul_kernel(
    x, packed, scale, out, count,
    N: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, SPLITS: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N rows of the matrix over one of SPLITS parts of their length, times BLOCK_M rows of x."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    PER_WORD: tl.constexpr = 32 // BITS
    WORDS: tl.constexpr = K // PER_WORD
    WORDS_A_GROUP: tl.constexpr = GROUP // PER_WORD
    GROUPS: tl.constexpr = K // GROUP
    STEPS: tl.constexpr = (WORDS + BLOCK_W * SPLITS - 1) // (BLOCK_W * SPLITS)
    EVEN: tl.constexpr = N % BLOCK_N == 0 and WORDS % (BLOCK_W * SPLITS) == 0
    first = split * STEPS * BLOCK_W
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in range(STEPS):
        word = first + step * BLOCK_W + tl.arange(0, BLOCK_W)
        inside = None if EVEN else (row < N)[:, None] & (word < WORDS)[None, :]
        other = None if EVEN else 0
        words = tl.load(packed + row[:, None] * WORDS + word[None, :], inside, other, eviction_policy="evict_first")
        if WORDS_A_GROUP % BLOCK_W == 0:  # one scale for each row
            group = (first + step * BLOCK_W) // WORDS_A_GROUP
            factor = tl.load(scale + row[:, None] * GROUPS + group, (row < N)[:, None] & (group < GROUPS), other=0.0)
        else:
            factor = tl.load(scale + row[:, None] * GROUPS + (word // WORDS_A_GROUP)[None, :], inside, other)
        matrix = unpacked(words, factor.to(tl.float32), BITS, ASSEMBLY).to(x.dtype.element_ty)
        column = (first + step * BLOCK_W) * PER_WORD + tl.arange(0, BLOCK_W * PER_WORD)
        live = (m < count)[None, :] & (column < K)[:, None]
        columns = tl.load(x + m[None, :] * K + column[:, None], mask=live, other=0.0)
        sums = tl.dot(matrix, columns, sums)
    target = out + (split * count + m)[None, :] * N + row[:, None]
    tl.store(target, sums.to(out.dtype.element_ty), mask=(m < count)[None, :] & (row < N)[:, None])


@triton.jit
def sum_kernel(parts, out, size, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + split * size + index, mask=index < size, other=0.0)
    tl.store(out + index, total.to(out.dtype.element_ty), mask=index < size)


@dataclass(frozen=True)
class Tile:
    """Matrix rows and packed words that a program takes at a time, parts of a row's length, warps, stages."""

    rows: int
    words: int
    splits: int
    warps: int = 4
    stages: int = 3


def supports(x: Tensor, weight: PackedWeight) -> bool:
    """Whether ``packed_matmul`` can take these: 16-bit activations, and words that belong to one group each."""
    per_word = 32 // weight.bits
    return (
        x.dtype in (torch.float16, torch.bfloat16) and weight.shape[1] % per_word == weight.group_size % per_word == 0
    )


def packed_matmul(x: Tensor, weight: PackedWeight, tile: Tile | None = None) -> Tensor:
    """x [rows, in], contiguous, times the transposed matrix -> [rows, out], in x's dtype; see ``supports``.

    Sums in float32; the matrix is rounded to x's dtype as kernels/reference.py's is.
    """
    (n, k), count = weight.shape, x.shape[0]
    tile = tile or choose_tile(weight, count, x.device)
    block_m = min(64, max(16, triton.next_power_of_2(count)))
    parts = x.new_empty((tile.splits, count, n), dtype=torch.float32 if tile.splits > 1 else x.dtype)
    grid = (triton.cdiv(n, tile.rows), tile.splits, triton.cdiv(count, block_m))
    packed_matmul_kernel[grid](
        x, weight.packed, weight.scale, parts, count, n, k, weight.bits, weight.group_size, block_m, tile.rows,
        tile.words, tile.splits, x.is_cuda, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if tile.splits == 1:
        return parts[0]
    out = x.new_empty((count, n))
    sum_kernel[(triton.cdiv(out.numel(), 1024),)](parts, out, out.numel(), tile.splits, 1024, num_warps=4)
    return out


def choose_tile(weight: PackedWeight, count: int, device: torch.device) -> Tile:
    """What measured best for the 11B's matrices on an H200; two programs at least for every multiprocessor."""
    words = 32 if weight.bits == 8 and count <= 32 else 16
    parts = 1
    while (
        parts < 16
        and parts * triton.cdiv(weight.shape[0], 64) < 2 * multiprocessors(device)
        and parts * 2 * words <= weight.packed.shape[1]
    ):
        parts *= 2
    if weight.bits == 4 and count > 32:
        return Tile(128, words, parts, warps=8)
    return Tile(64, words, parts)
