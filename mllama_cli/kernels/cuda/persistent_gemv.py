"""Multiply one row by a packed matrix whose rows fit into a program's registers; see kernels/cuda/gemv_api.py.

A persistent kernel: as many programs as run at once loop over the rows, so that each reads and norms x only once, and
loads the next rows while it computes.
"""

import triton
import triton.language as tl

from mllama_cli.kernels.cuda.gemv import blocks_of, load_epilogue, select_matrix
from mllama_cli.kernels.cuda.halves import share_table
from mllama_cli.kernels.cuda.launch import gdc_launch_dependents, gdc_wait
from mllama_cli.kernels.cuda.layout import offset_of
from mllama_cli.kernels.cuda.low_rank import SUM_COPIES, add_to_sums, load_ranks, load_sums, ranks_of
from mllama_cli.kernels.cuda.warps import hand_out, store_rows
from mllama_cli.kernels.cuda.words import load_norms, load_numbers, multiply, operands_of


@triton.jit
def load_rows(
    matrix, scales, row, lanes,
    WORDS: tl.constexpr, GROUPS: tl.constexpr, QUADS: tl.constexpr, QUADS_A_GROUP: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Load words [Q, N, C, 4] and scales [Q, N, C] of whole rows, C chunks of Q quads; beyond, the last again.

    No load has a mask, which would cost instructions: there, operands are zeros.
    """
    BLOCK_Q: tl.constexpr = lanes.shape[0]
    chunks = tl.arange(0, CHUNKS) * BLOCK_Q
    if BLOCK_Q * CHUNKS == QUADS:  # a constant distance from chunk to chunk
        at = row[None, :, None, None] * WORDS + lanes[:, None, None, None] * 4 + tl.arange(0, 4)[None, None, None, :]
        words = (matrix + at) + chunks[None, None, :, None] * 4
    else:
        within = tl.minimum(lanes[:, None] + chunks[None, :], QUADS - 1)[:, None, :, None] * 4
        at = row[None, :, None, None] * WORDS + tl.arange(0, 4)[None, None, None, :]
        words = (matrix + at) + within
    if BLOCK_Q * CHUNKS == QUADS and BLOCK_Q % QUADS_A_GROUP == 0:
        scale = scales + (row[None, :, None] * GROUPS + (lanes // QUADS_A_GROUP)[:, None, None])
        scale = scale + (chunks // QUADS_A_GROUP)[None, None, :]
    else:
        within = tl.minimum(lanes[:, None] + chunks[None, :], QUADS - 1) // QUADS_A_GROUP
        scale = (scales + row[None, :, None] * GROUPS) + within[:, None, :]
    return tl.load(words, eviction_policy="evict_first"), tl.load(scale)


@triton.jit
def load_block(
    block, p0, p1, p2, s0, s1, s2, lanes,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_N: tl.constexpr, CHUNKS: tl.constexpr,
    WORDS: tl.constexpr, GROUPS: tl.constexpr, QUADS: tl.constexpr, QUADS_A_GROUP: tl.constexpr, SWIGLU: tl.constexpr,
):  # fmt: skip
    """Load BLOCK_N rows; return their first output row, rows, the number of rows, words and scales.

    With SWIGLU, the second matrix's words and scales follow, otherwise the same again.
    """
    matrix, first, count, start = select_matrix(block, p0, p1, p2, N0, N1, N2, BLOCK_N, SWIGLU)
    scales, _, _, _ = select_matrix(block, s0, s1, s2, N0, N1, N2, BLOCK_N, SWIGLU)
    rows = start + tl.arange(0, BLOCK_N)
    if N0 % BLOCK_N == 0 and N1 % BLOCK_N == 0 and N2 % BLOCK_N == 0:
        there = rows
    else:
        there = tl.minimum(rows, count - 1)
    words, scale = load_rows(matrix, scales, there, lanes, WORDS, GROUPS, QUADS, QUADS_A_GROUP, CHUNKS)
    if SWIGLU:
        words_up, scale_up = load_rows(p1, s1, there, lanes, WORDS, GROUPS, QUADS, QUADS_A_GROUP, CHUNKS)
    else:
        words_up, scale_up = words, scale
    return first, rows, count, words, scale, words_up, scale_up


@triton.jit
def order_loads(CAPABILITY: tl.constexpr):
    """Have what was loaded before this on its way: the compiler would load later."""
    if CAPABILITY > 0:
        tl.inline_asm_elementwise("bar.warp.sync 0xFFFFFFFF; // dummy $0", "=r", [], tl.int32, False, 1)


@triton.jit
def persistent_gemv_kernel(
    x, norm, residual, factor, p0, p1, p2, s0, s1, s2, out, b, copies, unit, next_a, next_copies, next_scale, pairs,
    eps, programs,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr, CODE: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr, CHUNKS: tl.constexpr,
    STAGED: tl.constexpr, OUT_INTERLEAVE: tl.constexpr, RESIDUAL_INTERLEAVE: tl.constexpr,
    SWIGLU: tl.constexpr, HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_FACTOR: tl.constexpr,
    RANKS: tl.constexpr, NEXT_RANKS: tl.constexpr, CAPABILITY: tl.constexpr, HALVES: tl.constexpr,
    EARLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Multiply as packed_gemv_kernel does, in ``programs`` programs that loop over BLOCK_N rows at a time.

    Rows have up to CHUNKS of BLOCK_Q quads. RANKS and NEXT_RANKS are at most as many. STAGED says that a program has
    more threads than BLOCK_Q, so that its warps multiply different rows.
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
    AHEAD: tl.constexpr = CODE == "fp8" and HALVES  # loads before products, or after them: measured
    TOTAL: tl.constexpr = RANKS * (1 + (N1 > 0) + (N2 > 0))
    lanes = tl.arange(0, BLOCK_Q)
    first, rows, count, words, scale, words_up, scale_up = load_block(
        program, p0, p1, p2, s0, s1, s2, lanes,
        N0, N1, N2, BLOCK_N, CHUNKS, WORDS, GROUPS, QUADS, QUADS_A_GROUP, SWIGLU,
    )  # fmt: skip
    if RANKS > 0:
        ranks = ranks_of(lanes, RANKS)
        b_rows = load_ranks(b, program, ranks, RANKS, BLOCK_N, CAPABILITY)
        if SWIGLU:
            b_rows_up = load_ranks(b, BLOCKS + program, ranks, RANKS, BLOCK_N, CAPABILITY)
    if NEXT_RANKS > 0:
        next_ranks = ranks_of(lanes, NEXT_RANKS)
        a_rows = load_ranks(next_a, program, next_ranks, NEXT_RANKS, BLOCK_N, CAPABILITY)
        next_parts = tl.zeros(a_rows.shape, tl.float32)
    everything = tl.arange(0, BLOCK_Q * CHUNKS)
    within = everything[:, None, None] * 4 + tl.arange(0, 4)[None, None, :]
    here = (everything < QUADS)[:, None, None] & (within >= 0)
    norms = load_norms(norm, WORDS, within, here, BITS, HAS_NORM)
    table = share_table(pairs, CODE, HALVES, CAPABILITY)
    gdc_wait(PDL)
    x += batch * K
    numbers = load_numbers(x, norms, WORDS, within, here, BITS, HAS_NORM)
    operands = hand_out(operands_of(numbers, BITS, CODE, HALVES, CAPABILITY), CODE, HALVES, CHUNKS, STAGED, CAPABILITY)
    if RANKS > 0:
        copies += batch * SUM_COPIES * TOTAL
        ax0 = load_sums(copies, ranks, unit, RANKS, TOTAL)
        ax1 = ax0
        ax2 = ax0
        if N1 > 0:
            ax1 = load_sums(copies + RANKS, ranks, unit, RANKS, TOTAL)
        if N2 > 0:
            ax2 = load_sums(copies + 2 * RANKS, ranks, unit, RANKS, TOTAL)
    length = 1.0
    if HAS_NORM:
        length = tl.rsqrt(tl.sum(tl.sum(tl.sum(numbers[8], axis=2), axis=1), axis=0) / K + eps)
    for block in range(program, BLOCKS, programs):
        following = first, rows, count, words, scale, words_up, scale_up
        if AHEAD:
            if block + programs < BLOCKS:
                following = load_block(
                    block + programs, p0, p1, p2, s0, s1, s2, lanes,
                    N0, N1, N2, BLOCK_N, CHUNKS, WORDS, GROUPS, QUADS, QUADS_A_GROUP, SWIGLU,
                )  # fmt: skip
            order_loads(CAPABILITY)
        sums = multiply(words, operands, table, pairs, BITS, CODE, HALVES, CAPABILITY)
        sums = tl.sum(sums * scale.to(tl.float32), axis=2)
        if SWIGLU:
            ups = multiply(words_up, operands, table, pairs, BITS, CODE, HALVES, CAPABILITY)
            ups = tl.sum(ups * scale_up.to(tl.float32), axis=2)
        if RANKS > 0:
            ax = ax0
            if SWIGLU:
                ups += tl.sum(b_rows_up.to(tl.float32) * ax1, axis=2)
            elif N1 > 0:
                ax = tl.where(block >= B0 + B1, ax2, tl.where(block >= B0, ax1, ax0))
            sums += tl.sum(b_rows.to(tl.float32) * ax, axis=2)
        target_rows = first + rows
        kept = rows < count
        if not AHEAD and block + programs < BLOCKS:
            following = load_block(
                block + programs, p0, p1, p2, s0, s1, s2, lanes,
                N0, N1, N2, BLOCK_N, CHUNKS, WORDS, GROUPS, QUADS, QUADS_A_GROUP, SWIGLU,
            )  # fmt: skip
        first, rows, count, words, scale, words_up, scale_up = following
        there = tl.minimum(block + programs, BLOCKS - 1)  # the last time, nothing uses what is loaded
        if RANKS > 0:
            b_rows = load_ranks(b, there, ranks, RANKS, BLOCK_N, CAPABILITY)
            if SWIGLU:
                b_rows_up = load_ranks(b, BLOCKS + there, ranks, RANKS, BLOCK_N, CAPABILITY)
        if NEXT_RANKS > 0:
            a_now = a_rows.to(tl.float32)
            a_rows = load_ranks(next_a, there, next_ranks, NEXT_RANKS, BLOCK_N, CAPABILITY)
        before, times = load_epilogue(
            target_rows, kept, residual + batch * SIZE, factor, SIZE, RESIDUAL_INTERLEAVE, HAS_RESIDUAL, HAS_FACTOR
        )
        if SWIGLU and BLOCK_Q <= 32:  # a warp has whole rows
            total = tl.sum(sums, axis=0) * length
            total = total * tl.sigmoid(total) * (tl.sum(ups, axis=0) * length)
        elif SWIGLU:  # one sum over a program's warps for both
            total, up = tl.split(tl.sum(tl.join(sums, ups), axis=0) * length)
            total = total * tl.sigmoid(total) * up
        else:
            total = tl.sum(sums, axis=0) * length
        target = out + batch * SIZE + offset_of(target_rows, SIZE, OUT_INTERLEAVE)
        result = (before + total * times).to(out.dtype.element_ty)
        store_rows(target, result, kept, BLOCK_Q, CAPABILITY)
        if NEXT_RANKS > 0:
            next_parts += a_now * (result if EVEN else tl.where(kept, result, 0.0)).to(tl.float32)[None, :, None]
    if NEXT_RANKS > 0:
        next_copies += batch * SUM_COPIES * NEXT_RANKS
        add_to_sums(
            next_copies, program, next_ranks, tl.sum(next_parts, axis=1, keep_dims=True), next_scale, NEXT_RANKS
        )
    gdc_launch_dependents(PDL and not EARLY)
