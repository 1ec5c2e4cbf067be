"""Multiply a few rows by a packed matrix, dequantized tile by tile for the tensor cores: the cost of a batch step.

The packed words are read once for up to BLOCK_M rows, and nothing unpacked is ever stored.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from mllama_cli.kernels.cuda.launch import capability, multiprocessors
from mllama_cli.kernels.cuda.unpack import dequantize_tile
from mllama_cli.kernels.packed import PackedWeight


@triton.jit(do_not_specialize=["count", "steps"])
def packed_matmul_kernel(
    x, packed, scale, out, count, n, words_a_row, words_a_group, groups, steps,
    BITS: tl.constexpr, CODE: tl.constexpr, ONE_GROUP: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, CAPABILITY: tl.constexpr,
):  # fmt: skip
    """Multiply BLOCK_N rows of the matrix, ``steps`` times BLOCK_W words of each, by BLOCK_M rows of x in each program.

    Sizes are not constants, so that one compiled kernel serves all matrices of a model. ONE_GROUP: a step is within one
    group of scales. EVEN: no tile reaches beyond the matrix.
    """
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    PER_WORD: tl.constexpr = 32 // BITS
    first = split * steps * BLOCK_W
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in range(steps):
        begin = first + step * BLOCK_W
        word = begin + tl.arange(0, BLOCK_W)
        inside = None if EVEN else (row < n)[:, None] & (word < words_a_row)[None, :]
        other = None if EVEN else 0
        words = tl.load(
            packed + row[:, None] * words_a_row + word[None, :], inside, other, eviction_policy="evict_first"
        )
        if ONE_GROUP:
            group = begin // words_a_group
            live = None if EVEN else (row < tl.where(group < groups, n, 0))[:, None]
            factor = tl.load(scale + row[:, None] * groups + group, live, None if EVEN else 0.0)
        else:
            factor = tl.load(scale + row[:, None] * groups + (word // words_a_group)[None, :], inside, other)
        matrix = dequantize_tile(words, factor.to(tl.float32), BITS, CODE, CAPABILITY).to(x.dtype.element_ty)
        column = begin * PER_WORD + tl.arange(0, BLOCK_W * PER_WORD)
        size = words_a_row * PER_WORD
        there = (m < count)[None, :] & (column < size)[:, None]
        columns = tl.load(x + m[None, :] * size + column[:, None], mask=there, other=0.0)
        sums = tl.dot(matrix, columns, sums)
    target = out + (split * count + m)[None, :] * n + row[:, None]
    tl.store(target, sums.to(out.dtype.element_ty), mask=(m < count)[None, :] & (row < n)[:, None])


@triton.jit(do_not_specialize=["size"])
def sum_kernel(parts, out, size, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + split * size + index, mask=index < size, other=0.0)
    tl.store(out + index, total.to(out.dtype.element_ty), mask=index < size)


@dataclass(frozen=True)
class MatmulTile:
    """Matrix rows and packed words that a program takes at a time, parts of a row's length, warps, stages."""

    rows: int
    words: int
    splits: int
    warps: int = 4
    stages: int = 3


def supports(x: Tensor, weight: PackedWeight) -> bool:
    """Return whether ``packed_matmul`` takes these: 16-bit activations, and words that belong to one group each."""
    per_word = 32 // weight.bits
    return (
        x.dtype in (torch.float16, torch.bfloat16) and weight.shape[1] % per_word == weight.group_size % per_word == 0
    )


def packed_matmul(x: Tensor, weight: PackedWeight, tile: MatmulTile | None = None) -> Tensor:
    """Multiply x [rows, in], contiguous, by the transposed matrix -> [rows, out], in x's dtype; see ``supports``.

    Sums are float32; the matrix is rounded to x's dtype as in kernels/packed.py.
    """
    (n, k), count = weight.shape, x.shape[0]
    tile = tile or choose_matmul_tile(weight.bits, n, weight.packed.shape[1], count > 32, multiprocessors(x.device))
    per_word = 32 // weight.bits
    words, group = k // per_word, weight.group_size // per_word
    steps = triton.cdiv(words, tile.words * tile.splits)
    block_m = min(64, max(16, triton.next_power_of_2(count)))
    parts = x.new_empty((tile.splits, count, n), dtype=torch.float32 if tile.splits > 1 else x.dtype)
    grid = (triton.cdiv(n, tile.rows), tile.splits, triton.cdiv(count, block_m))
    packed_matmul_kernel[grid](
        x, weight.packed, weight.scale, parts, count, n, words, group, k // weight.group_size, steps,
        weight.bits, weight.code, group % tile.words == 0, n % tile.rows == words % (tile.words * tile.splits) == 0,
        block_m, tile.rows, tile.words, capability(x.device), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if tile.splits == 1:
        return parts[0]
    out = x.new_empty((count, n))
    sum_kernel[(triton.cdiv(out.numel(), 1024),)](parts, out, out.numel(), tile.splits, 1024, num_warps=4)
    return out


@cache
def choose_matmul_tile(bits: int, rows: int, words_a_row: int, many: bool, multiprocessors: int) -> MatmulTile:
    """Return the tile that measured best for the 11B's matrices on an H200: two programs or more per multiprocessor.

    ``many`` means more than 32 rows of x.
    """
    words = 32 if bits == 8 and not many else 16
    parts = 1
    while parts < 16 and parts * triton.cdiv(rows, 64) < 2 * multiprocessors and parts * 2 * words <= words_a_row:
        parts *= 2
    return MatmulTile(128, words, parts, warps=8) if bits == 4 and many else MatmulTile(64, words, parts)
