"""Multiply one row by a plain matrix, with fused norm and epilogue; see kernels/cuda/gemv_api.py."""

import triton
import triton.language as tl

from mllama_cli.kernels.cuda.launch import gdc_launch_dependents, gdc_wait
from mllama_cli.kernels.cuda.layout import offset_of


@triton.jit
def select_matrix(
    block, w0, w1, w2,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_N: tl.constexpr, SWIGLU: tl.constexpr,
):  # fmt: skip
    """Return a program's matrix of up to three, its first output row, its number of rows, and the row to start at."""
    B0: tl.constexpr = (N0 + BLOCK_N - 1) // BLOCK_N
    B1: tl.constexpr = (N1 + BLOCK_N - 1) // BLOCK_N
    matrix = w0
    first = 0
    count = N0
    start = block * BLOCK_N
    if not SWIGLU and N1 > 0:
        if block >= B0 + B1:
            matrix = w2
            first = N0 + N1
            count = N2
            start = (block - B0 - B1) * BLOCK_N
        elif block >= B0:
            matrix = w1
            first = N0
            count = N1
            start = (block - B0) * BLOCK_N
    return matrix, first, count, start


@triton.constexpr_function
def blocks_of(n0, n1, n2, block_n, swiglu):
    """Return how many blocks of rows the matrices have."""
    return sum(-(-n // block_n) for n in ((n0,) if swiglu else (n0, n1, n2)))


@triton.jit
def matrix_index(block, N0: tl.constexpr, N1: tl.constexpr, BLOCK_N: tl.constexpr, SWIGLU: tl.constexpr):
    """Return the index of the matrix that ``select_matrix`` returns."""
    if SWIGLU or N1 == 0:
        return 0
    else:
        B0: tl.constexpr = (N0 + BLOCK_N - 1) // BLOCK_N
        B1: tl.constexpr = (N1 + BLOCK_N - 1) // BLOCK_N
        return (block >= B0).to(tl.int32) + (block >= B0 + B1).to(tl.int32)


@triton.jit
def load_norm(norm, INDEX: tl.constexpr, WORDS: tl.constexpr, within, here, HAS_NORM: tl.constexpr):
    """Load the norm's weights [Q, 1, 4] for the number at INDEX of each word, if there is a norm."""
    if HAS_NORM:
        return tl.load(norm + INDEX * WORDS + within, mask=here, other=0.0)
    else:
        return within


@triton.jit
def load_activations(x, weight, INDEX: tl.constexpr, WORDS: tl.constexpr, within, here, HAS_NORM: tl.constexpr):
    """Load the activations [Q, 1, 4] of the number at INDEX of each word; return them times weight, and squares."""
    row = tl.load(x + INDEX * WORDS + within, mask=here, other=0.0).to(tl.float32)
    squares = row * row
    if HAS_NORM:
        row *= weight.to(tl.float32)
    return row, squares


@triton.jit
def load_epilogue(
    rows, kept, residual, factor,
    SIZE: tl.constexpr, INTERLEAVE: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_FACTOR: tl.constexpr,
):  # fmt: skip
    """Load residual and factor early, together with x: waiting for memory at the end would delay the next kernel."""
    before = tl.zeros(rows.shape, tl.float32)
    if HAS_RESIDUAL:
        before = tl.load(residual + offset_of(rows, SIZE, INTERLEAVE), mask=kept, other=0.0).to(tl.float32)
    times = 1.0
    if HAS_FACTOR:
        times = tl.load(factor)
    return before, times


@triton.jit
def epilogue(total, up, squares, K: tl.constexpr, eps, SWIGLU: tl.constexpr, HAS_NORM: tl.constexpr):
    """Divide products by x's root mean square, and with SWIGLU return silu(total) * up."""
    if HAS_NORM:
        scale = tl.rsqrt(squares / K + eps)
        total *= scale
        if SWIGLU:
            up *= scale
    if SWIGLU:
        total = total * tl.sigmoid(total) * up
    return total


@triton.jit
def gemv_kernel(
    x, norm, residual, factor, w0, w1, w2, out, eps,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    IN_INTERLEAVE: tl.constexpr, OUT_INTERLEAVE: tl.constexpr, RESIDUAL_INTERLEAVE: tl.constexpr,
    SWIGLU: tl.constexpr, HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_FACTOR: tl.constexpr,
    EARLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    gdc_launch_dependents(PDL and EARLY)
    block = tl.program_id(0)
    batch = tl.program_id(1)
    SIZE: tl.constexpr = N0 if SWIGLU else N0 + N1 + N2
    EVEN: tl.constexpr = N0 % BLOCK_N == 0 and N1 % BLOCK_N == 0 and N2 % BLOCK_N == 0 and K % BLOCK_K == 0
    matrix, first, count, start = select_matrix(block, w0, w1, w2, N0, N1, N2, BLOCK_N, SWIGLU)
    rows = start + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    kept = rows < count
    tile = rows[:, None] * K + cols[None, :]
    inside = None if EVEN else kept[:, None] & (cols < K)[None, :]
    other = None if EVEN else 0.0
    weight = tl.load(matrix + tile, mask=inside, other=other, eviction_policy="evict_first")
    if SWIGLU:
        upward = tl.load(w1 + tile, mask=inside, other=other, eviction_policy="evict_first")
    if HAS_NORM and K <= BLOCK_K:
        scales = tl.load(norm + offset_of(cols, K, IN_INTERLEAVE), mask=cols < K, other=0.0).to(tl.float32)
    gdc_wait(PDL)
    x += batch * K
    before, times = load_epilogue(
        first + rows, kept, residual + batch * SIZE, factor, SIZE, RESIDUAL_INTERLEAVE, HAS_RESIDUAL, HAS_FACTOR
    )
    if K <= BLOCK_K:
        row = tl.load(x + offset_of(cols, K, IN_INTERLEAVE), mask=cols < K, other=0.0).to(tl.float32)
        squares = 0.0
        if HAS_NORM:
            squares = tl.sum(row * row)
            row *= scales
        total = tl.sum(weight.to(tl.float32) * row[None, :], axis=1)
        if SWIGLU:
            up = tl.sum(upward.to(tl.float32) * row[None, :], axis=1)
    else:
        sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        if SWIGLU:
            ups = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        square_sums = tl.zeros([BLOCK_K], tl.float32)
        for begin in tl.static_range(0, K, BLOCK_K):
            current = weight
            if SWIGLU:
                current_up = upward
            if begin + BLOCK_K < K:  # load the next tile while this one is used
                ahead = tile + (begin + BLOCK_K)
                inside = None if EVEN else kept[:, None] & (cols < K - begin - BLOCK_K)[None, :]
                weight = tl.load(matrix + ahead, mask=inside, other=other, eviction_policy="evict_first")
                if SWIGLU:
                    upward = tl.load(w1 + ahead, mask=inside, other=other, eviction_policy="evict_first")
            index = begin + cols
            source = offset_of(index, K, IN_INTERLEAVE)
            row = tl.load(x + source, mask=cols < K - begin, other=0.0).to(tl.float32)
            if HAS_NORM:
                square_sums += row * row
                row *= tl.load(norm + source, mask=cols < K - begin, other=0.0).to(tl.float32)
            sums += current.to(tl.float32) * row[None, :]
            if SWIGLU:
                ups += current_up.to(tl.float32) * row[None, :]
        squares = tl.sum(square_sums)
        total = tl.sum(sums, axis=1)
        if SWIGLU:
            up = tl.sum(ups, axis=1)
    total = epilogue(total, up if SWIGLU else total, squares, K, eps, SWIGLU, HAS_NORM)
    gdc_launch_dependents(PDL and not EARLY)
    target = out + batch * SIZE + offset_of(first + rows, SIZE, OUT_INTERLEAVE)
    tl.store(target, (before + total * times).to(out.dtype.element_ty), mask=kept)
