"""Multiply one row by a packed matrix, with fused norm and epilogue; see kernels/cuda/gemv_api.py."""

import triton
import triton.language as tl

from mllama_cli.kernels.cuda.fixed_point import fix_activations, fixed_product
from mllama_cli.kernels.cuda.gemv import (
    blocks_of,
    epilogue,
    load_activations,
    load_epilogue,
    load_norm,
    matrix_index,
    select_matrix,
)
from mllama_cli.kernels.cuda.halves import half_product, halve_activations, scale_unit, share_table
from mllama_cli.kernels.cuda.launch import gdc_launch_dependents, gdc_wait
from mllama_cli.kernels.cuda.layout import offset_of
from mllama_cli.kernels.cuda.low_rank import SUM_COPIES, add_to_sums, load_ranks, load_sums
from mllama_cli.kernels.cuda.unpack import as_biased_float


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
        scale = tl.load(scales + which, mask=live, other=0.0).to(tl.float32) * scale_unit(CODE, HALVES, CAPABILITY)
        if SWIGLU:
            scale_up = tl.load(s1 + which, mask=live, other=0.0).to(tl.float32) * scale_unit(CODE, HALVES, CAPABILITY)
        if begin == 0:
            if HALVES:
                table = share_table(pairs, CODE, CAPABILITY)
            if RANKS > 0:
                b_rows = load_ranks(b, block, quads, RANKS, BLOCK_N)
                if SWIGLU:
                    b_rows_up = load_ranks(b, BLOCKS + block, quads, RANKS, BLOCK_N)
            if NEXT_RANKS > 0:
                a_rows = load_ranks(next_a, block, quads, NEXT_RANKS, BLOCK_N)
            gdc_wait(PDL)
            before, times = load_epilogue(
                first + rows, kept, residual + batch * SIZE, factor, SIZE, RESIDUAL_INTERLEAVE, HAS_RESIDUAL, HAS_FACTOR
            )
            if RANKS > 0:
                copies += batch * SUM_COPIES * TOTAL
                copies += matrix_index(block, N0, N1, BLOCK_N, SWIGLU) * RANKS
                ax = load_sums(copies, quads, unit, RANKS, TOTAL)
                if SWIGLU:
                    ax_up = load_sums(copies + RANKS, quads, unit, RANKS, TOTAL)
        here = (quads < QUADS - begin)[:, None, None] & (within >= 0)
        if CODE == "int" or HALVES:
            source = x + begin * 4
            weights = norm + begin * 4
            n0 = load_norm(weights, 0, WORDS, within, here, HAS_NORM)
            x0, squares_here = load_activations(source, n0, 0, WORDS, within, here, HAS_NORM)
            n1 = load_norm(weights, 1, WORDS, within, here, HAS_NORM)
            x1, more = load_activations(source, n1, 1, WORDS, within, here, HAS_NORM)
            squares_here += more
            n2 = load_norm(weights, 2, WORDS, within, here, HAS_NORM)
            x2, more = load_activations(source, n2, 2, WORDS, within, here, HAS_NORM)
            squares_here += more
            n3 = load_norm(weights, 3, WORDS, within, here, HAS_NORM)
            x3, more = load_activations(source, n3, 3, WORDS, within, here, HAS_NORM)
            squares_here += more
            x4, x5, x6, x7 = x0, x0, x0, x0
            if BITS == 4:
                n4 = load_norm(weights, 4, WORDS, within, here, HAS_NORM)
                x4, more = load_activations(source, n4, 4, WORDS, within, here, HAS_NORM)
                squares_here += more
                n5 = load_norm(weights, 5, WORDS, within, here, HAS_NORM)
                x5, more = load_activations(source, n5, 5, WORDS, within, here, HAS_NORM)
                squares_here += more
                n6 = load_norm(weights, 6, WORDS, within, here, HAS_NORM)
                x6, more = load_activations(source, n6, 6, WORDS, within, here, HAS_NORM)
                squares_here += more
                n7 = load_norm(weights, 7, WORDS, within, here, HAS_NORM)
                x7, more = load_activations(source, n7, 7, WORDS, within, here, HAS_NORM)
                squares_here += more
            if HALVES:
                pairs0, pairs1, pairs2, pairs3, step = halve_activations(
                    x0, x1, x2, x3, x4, x5, x6, x7, BITS, CAPABILITY
                )
                part = half_product(words, pairs0, pairs1, pairs2, pairs3, table, pairs, BITS, CODE, CAPABILITY)
                sums += part * step * scale
                if SWIGLU:
                    part = half_product(words_up, pairs0, pairs1, pairs2, pairs3, table, pairs, BITS, CODE, CAPABILITY)
                    ups += part * step * scale_up
            else:
                low_even, high_even, low_odd, high_odd, offset, step = fix_activations(
                    x0, x1, x2, x3, x4, x5, x6, x7, BITS, CAPABILITY
                )
                part = fixed_product(words, low_even, high_even, low_odd, high_odd, offset, step, BITS, CAPABILITY)
                sums += part * scale
                if SWIGLU:
                    part = fixed_product(
                        words_up, low_even, high_even, low_odd, high_odd, offset, step, BITS, CAPABILITY
                    )
                    ups += part * scale_up
            if HAS_NORM:
                square_sums += tl.sum(squares_here, axis=2)
        else:
            products = tl.zeros([BLOCK_Q, BLOCK_N, 4], tl.float32)
            if SWIGLU:
                products_up = tl.zeros([BLOCK_Q, BLOCK_N, 4], tl.float32)
            squares_here = tl.zeros([BLOCK_Q, 1, 4], tl.float32)
            for number in tl.static_range(32 // BITS):
                source = number * WORDS + begin * 4 + within
                row = tl.load(x + source, mask=here, other=0.0).to(tl.float32)
                if HAS_NORM:
                    squares_here += row * row
                    row *= tl.load(norm + source, mask=here, other=0.0).to(tl.float32)
                products += as_biased_float(words, number, BITS, CODE, CAPABILITY) * row
                if SWIGLU:
                    products_up += as_biased_float(words_up, number, BITS, CODE, CAPABILITY) * row
            sums += tl.sum(products, axis=2) * scale
            if SWIGLU:
                ups += tl.sum(products_up, axis=2) * scale_up
            if HAS_NORM:
                square_sums += tl.sum(squares_here, axis=2)
    if RANKS > 0:
        sums += b_rows.to(tl.float32) * ax[:, None]
        if SWIGLU:
            ups += b_rows_up.to(tl.float32) * ax_up[:, None]
        for begin in tl.static_range(BLOCK_Q, RANKS, BLOCK_Q):
            ranks = begin + quads
            ax = load_sums(copies, ranks, unit, RANKS, TOTAL)
            sums += load_ranks(b, block, ranks, RANKS, BLOCK_N).to(tl.float32) * ax[:, None]
            if SWIGLU:
                ax_up = load_sums(copies + RANKS, ranks, unit, RANKS, TOTAL)
                b_more = load_ranks(b, BLOCKS + block, ranks, RANKS, BLOCK_N)
                ups += b_more.to(tl.float32) * ax_up[:, None]
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
        written = (result if EVEN else tl.where(kept, result, 0.0)).to(tl.float32)[None, :]
        for begin in tl.static_range(0, NEXT_RANKS, BLOCK_Q):
            if begin > 0:
                a_rows = load_ranks(next_a, block, begin + quads, NEXT_RANKS, BLOCK_N)
            parts = tl.sum(a_rows.to(tl.float32) * written, axis=1)
            add_to_sums(next_copies, block, begin + quads, parts, next_scale, NEXT_RANKS)
