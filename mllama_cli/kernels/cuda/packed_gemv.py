"""Multiply one row by a packed matrix, with fused norm and epilogue; see kernels/cuda/gemv_api.py."""

import triton
import triton.language as tl

from mllama_cli.kernels.cuda.gemv import (
    blocks_of,
    epilogue,
    load_epilogue,
    matrix_index,
    select_matrix,
)
from mllama_cli.kernels.cuda.halves import share_table
from mllama_cli.kernels.cuda.launch import gdc_launch_dependents, gdc_wait
from mllama_cli.kernels.cuda.layout import offset_of
from mllama_cli.kernels.cuda.low_rank import SUM_COPIES, add_to_sums, load_ranks, load_sums, ranks_of
from mllama_cli.kernels.cuda.words import load_norms, load_numbers, multiply, operands_of


@triton.jit
def packed_gemv_kernel(
    x, norm, residual, factor, p0, p1, p2, s0, s1, s2, out, b, copies, unit, next_a, next_copies, next_scale, pairs,
    eps,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr, CODE: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
    OUT_INTERLEAVE: tl.constexpr, RESIDUAL_INTERLEAVE: tl.constexpr,
    SWIGLU: tl.constexpr, HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_FACTOR: tl.constexpr,
    RANKS: tl.constexpr, NEXT_RANKS: tl.constexpr, CAPABILITY: tl.constexpr, HALVES: tl.constexpr,
    EARLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Multiply as gemv_kernel does, by packed weights, BLOCK_Q quads of words at a time; x and norm are interleaved.

    Adapters have RANKS for each matrix. The product that follows has NEXT_RANKS in all.
    """
    gdc_launch_dependents(PDL and EARLY)
    block = tl.program_id(0)
    batch = tl.program_id(1)
    SIZE: tl.constexpr = N0 if SWIGLU else N0 + N1 + N2
    WORDS: tl.constexpr = K * BITS // 32
    QUADS: tl.constexpr = WORDS // 4
    EVEN: tl.constexpr = N0 % BLOCK_N == 0 and N1 % BLOCK_N == 0 and N2 % BLOCK_N == 0 and QUADS % BLOCK_Q == 0
    QUADS_A_GROUP: tl.constexpr = GROUP * BITS // 128
    GROUPS: tl.constexpr = K // GROUP
    BLOCKS: tl.constexpr = blocks_of(N0, N1, N2, BLOCK_N, SWIGLU)
    TOTAL: tl.constexpr = RANKS * (1 + (N1 > 0) + (N2 > 0))
    matrix, first, count, start = select_matrix(block, p0, p1, p2, N0, N1, N2, BLOCK_N, SWIGLU)
    scales, _, _, _ = select_matrix(block, s0, s1, s2, N0, N1, N2, BLOCK_N, SWIGLU)
    rows = start + tl.arange(0, BLOCK_N)
    quads = tl.arange(0, BLOCK_Q)
    kept = rows < count
    # Quads come first: among equally contiguous dimensions Triton gives the first to adjacent threads.
    within = quads[:, None, None] * 4 + tl.arange(0, 4)[None, None, :]
    tile = rows[None, :, None] * WORDS + within
    scale_tile = rows[None, :] * GROUPS
    x += batch * K
    sums = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
    if SWIGLU:
        ups = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
    square_sums = tl.zeros([BLOCK_Q, 1], tl.float32)
    for begin in tl.static_range(0, QUADS, BLOCK_Q):
        inside = None if EVEN else kept[None, :, None] & (quads < QUADS - begin)[:, None, None]
        other = None if EVEN else 0
        words = tl.load(matrix + tile + begin * 4, mask=inside, other=other, eviction_policy="evict_first")
        if SWIGLU:
            words_up = tl.load(p1 + tile + begin * 4, mask=inside, other=other, eviction_policy="evict_first")
        which = scale_tile + ((begin + quads) // QUADS_A_GROUP)[:, None]
        live = kept[None, :] & (quads < QUADS - begin)[:, None]
        scale = tl.load(scales + which, mask=live, other=0.0).to(tl.float32)
        if SWIGLU:
            scale_up = tl.load(s1 + which, mask=live, other=0.0).to(tl.float32)
        if begin == 0:
            table = share_table(pairs, CODE, HALVES, CAPABILITY)
            if RANKS > 0:
                ranks = ranks_of(quads, RANKS)
                b_rows = load_ranks(b, block, ranks, RANKS, BLOCK_N, CAPABILITY)
                if SWIGLU:
                    b_rows_up = load_ranks(b, BLOCKS + block, ranks, RANKS, BLOCK_N, CAPABILITY)
            if NEXT_RANKS > 0:
                next_ranks = ranks_of(quads, NEXT_RANKS)
                a_rows = load_ranks(next_a, block, next_ranks, NEXT_RANKS, BLOCK_N, CAPABILITY)
            gdc_wait(PDL)
            before, times = load_epilogue(
                first + rows, kept, residual + batch * SIZE, factor, SIZE, RESIDUAL_INTERLEAVE, HAS_RESIDUAL, HAS_FACTOR
            )
            if RANKS > 0:
                copies += batch * SUM_COPIES * TOTAL
                copies += matrix_index(block, N0, N1, BLOCK_N, SWIGLU) * RANKS
                ax = load_sums(copies, ranks, unit, RANKS, TOTAL)
                if SWIGLU:
                    ax_up = load_sums(copies + RANKS, ranks, unit, RANKS, TOTAL)
        here = (quads < QUADS - begin)[:, None, None] & (within >= 0)
        norms = load_norms(norm + begin * 4, WORDS, within, here, BITS, HAS_NORM)
        numbers = load_numbers(x + begin * 4, norms, WORDS, within, here, BITS, HAS_NORM)
        operands = operands_of(numbers, BITS, CODE, HALVES, CAPABILITY)
        sums += multiply(words, operands, table, pairs, BITS, CODE, HALVES, CAPABILITY) * scale
        if SWIGLU:
            ups += multiply(words_up, operands, table, pairs, BITS, CODE, HALVES, CAPABILITY) * scale_up
        if HAS_NORM:
            square_sums += tl.sum(numbers[8], axis=2)
    if RANKS > 0:
        sums += tl.sum(b_rows.to(tl.float32) * ax, axis=2)
        if SWIGLU:
            ups += tl.sum(b_rows_up.to(tl.float32) * ax_up, axis=2)
    squares = tl.sum(square_sums)
    total = tl.sum(sums, axis=0)
    if SWIGLU:
        up = tl.sum(ups, axis=0)
    total = epilogue(total, up if SWIGLU else total, squares, K, eps, SWIGLU, HAS_NORM)
    gdc_launch_dependents(PDL and not EARLY)
    target = out + batch * SIZE + offset_of(first + rows, SIZE, OUT_INTERLEAVE)
    result = (before + total * times).to(out.dtype.element_ty)
    tl.store(target, result, mask=kept)
    if NEXT_RANKS > 0:
        next_copies += batch * SUM_COPIES * NEXT_RANKS
        written = (result if EVEN else tl.where(kept, result, 0.0)).to(tl.float32)[None, :, None]
        parts = tl.sum(a_rows.to(tl.float32) * written, axis=1, keep_dims=True)
        add_to_sums(next_copies, block, next_ranks, parts, next_scale, NEXT_RANKS)
