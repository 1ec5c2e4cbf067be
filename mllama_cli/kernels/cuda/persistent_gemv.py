"""Multiply one row by a packed matrix whose rows fit into a program's registers; see kernels/cuda/gemv_api.py.

A persistent kernel: as many programs as run at once loop over the rows, so that each reads and norms x only once, and
loads the next rows while it computes.
"""

import triton
import triton.language as tl

from mllama_cli.kernels.cuda.gemv import blocks_of, load_epilogue, select_matrix
from mllama_cli.kernels.cuda.halves import scale_unit, share_table
from mllama_cli.kernels.cuda.launch import gdc_launch_dependents, gdc_wait
from mllama_cli.kernels.cuda.layout import offset_of
from mllama_cli.kernels.cuda.low_rank import SUM_COPIES, add_to_sums, load_ranks, load_sums
from mllama_cli.kernels.cuda.words import load_norms, load_numbers, multiply, operands_of


@triton.jit
def load_rows(
    matrix, scales, row, count, quads,
    WORDS: tl.constexpr, GROUPS: tl.constexpr, QUADS: tl.constexpr, QUADS_A_GROUP: tl.constexpr,
):  # fmt: skip
    """Load words [Q, N, 4] and scales [Q, N] of whole rows; zeros beyond."""
    live = (quads < QUADS)[:, None] & (row < count)[None, :]
    within = quads[:, None, None] * 4 + tl.arange(0, 4)[None, None, :]
    inside = live[:, :, None] & (within >= 0)
    words = tl.load(matrix + row[None, :, None] * WORDS + within, inside, other=0, eviction_policy="evict_first")
    scale = tl.load(scales + row[None, :] * GROUPS + (quads // QUADS_A_GROUP)[:, None], live, other=0.0)
    return words, scale


@triton.jit
def load_block(
    block, p0, p1, p2, s0, s1, s2, quads,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_N: tl.constexpr,
    WORDS: tl.constexpr, GROUPS: tl.constexpr, QUADS: tl.constexpr, QUADS_A_GROUP: tl.constexpr, SWIGLU: tl.constexpr,
):  # fmt: skip
    """Load BLOCK_N rows; return their first output row, rows, the number of rows, words and scales.

    With SWIGLU, the second matrix's words and scales follow, otherwise the same again.
    """
    matrix, first, count, start = select_matrix(block, p0, p1, p2, N0, N1, N2, BLOCK_N, SWIGLU)
    scales, _, _, _ = select_matrix(block, s0, s1, s2, N0, N1, N2, BLOCK_N, SWIGLU)
    rows = start + tl.arange(0, BLOCK_N)
    words, scale = load_rows(matrix, scales, rows, count, quads, WORDS, GROUPS, QUADS, QUADS_A_GROUP)
    if SWIGLU:
        words_up, scale_up = load_rows(p1, s1, rows, count, quads, WORDS, GROUPS, QUADS, QUADS_A_GROUP)
    else:
        words_up, scale_up = words, scale
    return first, rows, count, words, scale, words_up, scale_up


@triton.jit
def order_loads(CAPABILITY: tl.constexpr):
    """Have what was loaded before this on its way before shared memory is read: the compiler would load later."""
    if CAPABILITY > 0:
        tl.inline_asm_elementwise("bar.warp.sync 0xFFFFFFFF; // dummy $0", "=r", [], tl.int32, False, 1)


@triton.jit
def persistent_gemv_kernel(
    x, norm, residual, factor, p0, p1, p2, s0, s1, s2, out, b, copies, unit, next_a, next_copies, next_scale, pairs,
    eps, programs,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr, CODE: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
    OUT_INTERLEAVE: tl.constexpr, RESIDUAL_INTERLEAVE: tl.constexpr,
    SWIGLU: tl.constexpr, HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_FACTOR: tl.constexpr,
    RANKS: tl.constexpr, NEXT_RANKS: tl.constexpr, CAPABILITY: tl.constexpr, HALVES: tl.constexpr,
    EARLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Multiply as packed_gemv_kernel does, in ``programs`` programs that loop over BLOCK_N rows at a time.

    RANKS and NEXT_RANKS are at most BLOCK_Q.
    """
    gdc_launch_dependents(PDL and EARLY)
    program = tl.program_id(0)
    batch = tl.program_id(1)
    B0: tl.constexpr = (N0 + BLOCK_N - 1) // BLOCK_N
    B1: tl.constexpr = (N1 + BLOCK_N - 1) // BLOCK_N
    BLOCKS: tl.constexpr = blocks_of(N0, N1, N2, BLOCK_N, SWIGLU)
    SIZE: tl.constexpr = N0 if SWIGLU else N0 + N1 + N2
    WORDS: tl.constexpr = K * BITS // 32
    QUADS: tl.constexpr = WORDS // 4
    QUADS_A_GROUP: tl.constexpr = GROUP * BITS // 128
    GROUPS: tl.constexpr = K // GROUP
    EVEN: tl.constexpr = N0 % BLOCK_N == 0 and N1 % BLOCK_N == 0 and N2 % BLOCK_N == 0
    TOTAL: tl.constexpr = RANKS * (1 + (N1 > 0) + (N2 > 0))
    quads = tl.arange(0, BLOCK_Q)
    first, rows, count, words, scale, words_up, scale_up = load_block(
        program, p0, p1, p2, s0, s1, s2, quads, N0, N1, N2, BLOCK_N, WORDS, GROUPS, QUADS, QUADS_A_GROUP, SWIGLU
    )
    if RANKS > 0:
        b_rows = load_ranks(b, program, quads, RANKS, BLOCK_N)
        if SWIGLU:
            b_rows_up = load_ranks(b, BLOCKS + program, quads, RANKS, BLOCK_N)
    if NEXT_RANKS > 0:
        a_rows = load_ranks(next_a, program, quads, NEXT_RANKS, BLOCK_N)
        next_parts = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
    within = quads[:, None, None] * 4 + tl.arange(0, 4)[None, None, :]
    here = (quads < QUADS)[:, None, None] & (within >= 0)
    norms = load_norms(norm, WORDS, within, here, BITS, HAS_NORM)
    table = share_table(pairs, CODE, HALVES, CAPABILITY)
    gdc_wait(PDL)
    x += batch * K
    numbers = load_numbers(x, norms, WORDS, within, here, BITS, HAS_NORM)
    operands = operands_of(numbers, BITS, CODE, HALVES, CAPABILITY)
    if RANKS > 0:
        copies += batch * SUM_COPIES * TOTAL
        ax0 = load_sums(copies, quads, unit, RANKS, TOTAL)[:, None]
        ax1 = ax0
        ax2 = ax0
        if N1 > 0:
            ax1 = load_sums(copies + RANKS, quads, unit, RANKS, TOTAL)[:, None]
        if N2 > 0:
            ax2 = load_sums(copies + 2 * RANKS, quads, unit, RANKS, TOTAL)[:, None]
    length = 1.0
    if HAS_NORM:
        length = tl.rsqrt(tl.sum(tl.sum(tl.sum(numbers[8], axis=2), axis=1), axis=0) / K + eps)
    for block in range(program, BLOCKS, programs):
        if HALVES:
            following = load_block(
                block + programs, p0, p1, p2, s0, s1, s2, quads,
                N0, N1, N2, BLOCK_N, WORDS, GROUPS, QUADS, QUADS_A_GROUP, SWIGLU,
            )  # fmt: skip
            order_loads(CAPABILITY)
        sums = multiply(words, operands, table, pairs, BITS, CODE, HALVES, CAPABILITY)
        sums *= scale.to(tl.float32) * scale_unit(CODE, HALVES, CAPABILITY)
        if SWIGLU:
            ups = multiply(words_up, operands, table, pairs, BITS, CODE, HALVES, CAPABILITY)
            ups *= scale_up.to(tl.float32) * scale_unit(CODE, HALVES, CAPABILITY)
        if RANKS > 0:
            ax = ax0
            if SWIGLU:
                ups += b_rows_up.to(tl.float32) * ax1
            elif N1 > 0:
                ax = tl.where(block >= B0 + B1, ax2, tl.where(block >= B0, ax1, ax0))
            sums += b_rows.to(tl.float32) * ax
        target_rows = first + rows
        kept = rows < count
        if not HALVES:
            following = load_block(
                block + programs, p0, p1, p2, s0, s1, s2, quads,
                N0, N1, N2, BLOCK_N, WORDS, GROUPS, QUADS, QUADS_A_GROUP, SWIGLU,
            )  # fmt: skip
        first, rows, count, words, scale, words_up, scale_up = following
        there = tl.minimum(block + programs, BLOCKS - 1)  # the last time, nothing uses what is loaded
        if RANKS > 0:
            b_rows = load_ranks(b, there, quads, RANKS, BLOCK_N)
            if SWIGLU:
                b_rows_up = load_ranks(b, BLOCKS + there, quads, RANKS, BLOCK_N)
        if NEXT_RANKS > 0:
            a_now = a_rows.to(tl.float32)
            a_rows = load_ranks(next_a, there, quads, NEXT_RANKS, BLOCK_N)
        before, times = load_epilogue(
            target_rows, kept, residual + batch * SIZE, factor, SIZE, RESIDUAL_INTERLEAVE, HAS_RESIDUAL, HAS_FACTOR
        )
        if SWIGLU:  # one sum over the program's threads for both
            total, up = tl.split(tl.sum(tl.join(sums, ups), axis=0) * length)
            total = total * tl.sigmoid(total) * up
        else:
            total = tl.sum(sums, axis=0) * length
        target = out + batch * SIZE + offset_of(target_rows, SIZE, OUT_INTERLEAVE)
        result = (before + total * times).to(out.dtype.element_ty)
        tl.store(target, result, mask=kept)
        if NEXT_RANKS > 0:
            next_parts += a_now * (result if EVEN else tl.where(kept, result, 0.0)).to(tl.float32)[None, :]
    if NEXT_RANKS > 0:
        next_copies += batch * SUM_COPIES * NEXT_RANKS
        add_to_sums(next_copies, program, quads, tl.sum(next_parts, axis=1), next_scale, NEXT_RANKS)
    gdc_launch_dependents(PDL and not EARLY)
