"""One row times a matrix, at the speed at which the matrix can be read: what a decoded token costs.

Every program takes a few rows of the matrix over their whole length, and everything that surrounds the product rides
along: the RMSNorm before it (each program sees all of x anyway, so the sum of squares is free), SiLU of the gate, the
residual after it. Under programmatic dependent launch a program asks for its first weights before the kernel that makes
x has finished, so the memory never idles between kernels.

Activations are plain [size], or in "planes" for packed weights: element k lies at (k % P) * (size / P) + k / P, P being
the numbers in an int32 word, so that neighbouring words read neighbouring activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from mllama_cli.kernels.cuda.launch import dependents_may_start, launch, wait_for_inputs
from mllama_cli.kernels.reference import PackedWeight


@triton.jit
def place(index, SIZE: tl.constexpr, PLANES: tl.constexpr):
    """Where element ``index`` of a vector of SIZE lies."""
    if PLANES == 1:
        return index
    else:
        return (index % PLANES) * (SIZE // PLANES) + index // PLANES


@triton.jit
def load_around(
    rows, kept, residual, factor,
    SIZE: tl.constexpr, PLANES: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_FACTOR: tl.constexpr,
):  # fmt: skip
    """Residual and factor, asked for together with x: what waits for memory at the end holds up the next kernel."""
    before = tl.zeros(rows.shape, tl.float32)
    if HAS_RESIDUAL:
        before = tl.load(residual + place(rows, SIZE, PLANES), mask=kept, other=0.0).to(tl.float32)
    times = 1.0
    if HAS_FACTOR:
        times = tl.load(factor)
    return before, times


@triton.jit
def gemv_kernel(
    x, norm, residual, factor, w0, w1, w2, out, eps,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    IN_PLANES: tl.constexpr, OUT_PLANES: tl.constexpr, RESIDUAL_PLANES: tl.constexpr,
    SWIGLU: tl.constexpr, HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_FACTOR: tl.constexpr,
    EARLY: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    dependents_may_start(OVERLAP and EARLY)
    block = tl.program_id(0)
    batch = tl.program_id(1)
    B0: tl.constexpr = (N0 + BLOCK_N - 1) // BLOCK_N
    B1: tl.constexpr = (N1 + BLOCK_N - 1) // BLOCK_N
    SIZE: tl.constexpr = N0 if SWIGLU else N0 + N1 + N2
    EVEN: tl.constexpr = N0 % BLOCK_N == 0 and N1 % BLOCK_N == 0 and N2 % BLOCK_N == 0 and K % BLOCK_K == 0
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
        scales = tl.load(norm + cols, mask=cols < K, other=0.0).to(tl.float32)
    wait_for_inputs(OVERLAP)
    x += batch * K
    before, times = load_around(
        first + rows, kept, residual + batch * SIZE, factor, SIZE, RESIDUAL_PLANES, HAS_RESIDUAL, HAS_FACTOR
    )
    if K <= BLOCK_K:
        row = tl.load(x + place(cols, K, IN_PLANES), mask=cols < K, other=0.0).to(tl.float32)
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
            if begin + BLOCK_K < K:  # the next tile is on its way while this one is used
                ahead = tile + (begin + BLOCK_K)
                inside = None if EVEN else kept[:, None] & (cols < K - begin - BLOCK_K)[None, :]
                weight = tl.load(matrix + ahead, mask=inside, other=other, eviction_policy="evict_first")
                if SWIGLU:
                    upward = tl.load(w1 + ahead, mask=inside, other=other, eviction_policy="evict_first")
            row = tl.load(x + place(begin + cols, K, IN_PLANES), mask=cols < K - begin, other=0.0).to(tl.float32)
            if HAS_NORM:
                square_sums += row * row
                row *= tl.load(norm + begin + cols, mask=cols < K - begin, other=0.0).to(tl.float32)
            sums += current.to(tl.float32) * row[None, :]
            if SWIGLU:
                ups += current_up.to(tl.float32) * row[None, :]
        squares = tl.sum(square_sums)
        total = tl.sum(sums, axis=1)
        if SWIGLU:
            up = tl.sum(ups, axis=1)
    if SWIGLU:
        if HAS_NORM:
            scale = tl.rsqrt(squares / K + eps)
            total *= scale
            up *= scale
        total = total * tl.sigmoid(total) * up
    if HAS_NORM and not SWIGLU:
        total *= tl.rsqrt(squares / K + eps)
    dependents_may_start(OVERLAP and not EARLY)
    target = out + batch * SIZE + place(first + rows, SIZE, OUT_PLANES)
    tl.store(target, (before + total * times).to(out.dtype.element_ty), mask=kept)


@triton.jit
def lifted(words, PLACE: tl.constexpr, BITS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """The number at ``PLACE`` of each word, as float32, plus ``excess_of``.

    Converting integers is slow, so float32 bits are made instead: a number or-ed into the upper bits of a mantissa is
    a constant plus the number. The constants times the activations are subtracted once for all rows of a tile.
    """
    # Of four bits, even places go to bits 16-19 (128 + q), odd ones to bits 12-15 (2048 + q): half as many shifts.
    EVEN: tl.constexpr = PLACE % 2 == 0
    SHIFT: tl.constexpr = ((16 if EVEN else 12) - 4 * PLACE) if BITS == 4 else 8 - 8 * PLACE
    MASK: tl.constexpr = (0x000F0000 if EVEN else 0x0000F000) if BITS == 4 else 0x0000FF00
    BASE: tl.constexpr = (0x43000000 if EVEN else 0x45000000) if BITS == 4 else 0x47000000
    if SHIFT > 0:
        words = words << SHIFT
    elif SHIFT < 0:
        words = words >> (0 - SHIFT)
    if ASSEMBLY:  # one instruction for and-or with two constants, which the compiler makes two of
        mask = tl.full(words.shape, MASK, tl.int32)
        base = tl.full(words.shape, BASE, tl.int32)
        bits = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", [words, mask, base], tl.int32, True, 1
        )
    else:
        bits = (words & MASK) | BASE
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def excess_of(PLACE: tl.constexpr, BITS: tl.constexpr):
    if BITS == 4:
        return 136.0 if PLACE % 2 == 0 else 2056.0
    else:
        return 32896.0


@triton.jit
def packed_gemv_kernel(
    x, norm, residual, factor, p0, p1, p2, s0, s1, s2, out, eps,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
    OUT_PLANES: tl.constexpr, RESIDUAL_PLANES: tl.constexpr,
    SWIGLU: tl.constexpr, HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_FACTOR: tl.constexpr,
    ASSEMBLY: tl.constexpr, EARLY: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """As gemv_kernel for PackedWeight: BLOCK_Q quads of words at a time. x and norm lie in planes."""
    dependents_may_start(OVERLAP and EARLY)
    block = tl.program_id(0)
    batch = tl.program_id(1)
    B0: tl.constexpr = (N0 + BLOCK_N - 1) // BLOCK_N
    B1: tl.constexpr = (N1 + BLOCK_N - 1) // BLOCK_N
    SIZE: tl.constexpr = N0 if SWIGLU else N0 + N1 + N2
    WORDS: tl.constexpr = K * BITS // 32
    QUADS: tl.constexpr = WORDS // 4
    EVEN: tl.constexpr = N0 % BLOCK_N == 0 and N1 % BLOCK_N == 0 and N2 % BLOCK_N == 0 and QUADS % BLOCK_Q == 0
    QUADS_A_GROUP: tl.constexpr = GROUP * BITS // 128
    GROUPS: tl.constexpr = K // GROUP
    matrix = p0
    scales = s0
    first = 0
    count = N0
    start = block * BLOCK_N
    if not SWIGLU and N1 > 0:
        if block >= B0 + B1:
            matrix = p2
            scales = s2
            first = N0 + N1
            count = N2
            start = (block - B0 - B1) * BLOCK_N
        elif block >= B0:
            matrix = p1
            scales = s1
            first = N0
            count = N1
            start = (block - B0) * BLOCK_N
    rows = start + tl.arange(0, BLOCK_N)
    quads = tl.arange(0, BLOCK_Q)
    kept = rows < count
    # Quads lie along the first dimension: of equally contiguous ones Triton gives it to neighbouring threads.
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
            wait_for_inputs(OVERLAP)
            before, times = load_around(
                first + rows, kept, residual + batch * SIZE, factor, SIZE, RESIDUAL_PLANES, HAS_RESIDUAL, HAS_FACTOR
            )
        here = (quads < QUADS - begin)[:, None, None] & (within >= 0)
        products = tl.zeros([BLOCK_Q, BLOCK_N, 4], tl.float32)
        if SWIGLU:
            products_up = tl.zeros([BLOCK_Q, BLOCK_N, 4], tl.float32)
        excess = tl.zeros([BLOCK_Q, 1, 4], tl.float32)
        squares_here = tl.zeros([BLOCK_Q, 1, 4], tl.float32)
        for number in tl.static_range(32 // BITS):
            source = number * WORDS + begin * 4 + within
            row = tl.load(x + source, mask=here, other=0.0).to(tl.float32)
            if HAS_NORM:
                squares_here += row * row
                row *= tl.load(norm + source, mask=here, other=0.0).to(tl.float32)
            excess += row * excess_of(number, BITS)
            products += lifted(words, number, BITS, ASSEMBLY) * row
            if SWIGLU:
                products_up += lifted(words_up, number, BITS, ASSEMBLY) * row
        excess_sum = tl.sum(excess, axis=2)
        sums += (tl.sum(products, axis=2) - excess_sum) * scale
        if SWIGLU:
            ups += (tl.sum(products_up, axis=2) - excess_sum) * scale_up
        if HAS_NORM:
            square_sums += tl.sum(squares_here, axis=2)
    squares = tl.sum(square_sums)
    total = tl.sum(sums, axis=0)
    if SWIGLU:
        up = tl.sum(ups, axis=0)
        if HAS_NORM:
            scale_norm = tl.rsqrt(squares / K + eps)
            total *= scale_norm
            up *= scale_norm
        total = total * tl.sigmoid(total) * up
    if HAS_NORM and not SWIGLU:
        total *= tl.rsqrt(squares / K + eps)
    dependents_may_start(OVERLAP and not EARLY)
    target = out + batch * SIZE + place(first + rows, SIZE, OUT_PLANES)
    tl.store(target, (before + total * times).to(out.dtype.element_ty), mask=kept)


@dataclass(frozen=True)
class Tile:
    """Rows and columns (of packed weights: quads of words) that a program reads at a time, and its warps."""

    rows: int
    columns: int
    warps: int


def planes(weight: Tensor | PackedWeight) -> int:
    """The layout in which a weight's kernel wants its activations."""
    return 32 // weight.bits if isinstance(weight, PackedWeight) else 1


def to_planes(x: Tensor, count: int) -> Tensor:
    """A vector, or rows of vectors, in another layout."""
    return x if count == 1 else x.unflatten(-1, (-1, count)).transpose(-1, -2).flatten(-2).contiguous()


def supports(weight: Tensor | PackedWeight) -> bool:
    """Whether ``gemv`` can take this weight."""
    if not isinstance(weight, PackedWeight):
        return weight.is_contiguous()
    quad = 4 * 32 // weight.bits
    return weight.shape[1] % quad == 0 and weight.group_size % quad == 0


def gemv(
    x: Tensor,
    weights: Sequence[Tensor | PackedWeight],
    out: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    factor: Tensor | None = None,
    swiglu: bool = False,
    in_planes: int = 1,
    out_planes: int = 1,
    residual_planes: int = 1,
    tile: Tile | None = None,
) -> None:
    """out [B, sum of rows] = residual + factor * (RMSNorm(x [B, in]) times up to three matrices, one after another).

    With ``swiglu`` there are two matrices, and out is silu(first) * second. ``factor`` is one float32 number. ``norm``
    lies in the same planes as x. Weights are all plain or all packed alike. Every row of x reads the weights again, so
    this is for one row (or very few).
    """
    first = weights[0]
    if isinstance(first, PackedWeight):
        packed = [w for w in weights if isinstance(w, PackedWeight)]
        assert len(packed) == len(weights)
        assert in_planes == planes(first)
        assert all((w.bits, w.group_size) == (first.bits, first.group_size) for w in packed)
        shapes = [w.shape for w in packed]
    else:
        packed = []
        shapes = [(w.shape[0], w.shape[1]) for w in weights]
    size_in = shapes[0][1]
    rows = [shape[0] for shape in shapes] + [0] * (3 - len(shapes))
    if tile is None:
        tile = choose_tile(first, shapes, swiglu)
    blocks = triton.cdiv(rows[0], tile.rows) if swiglu else sum(triton.cdiv(r, tile.rows) for r in rows)
    flags = {
        "OUT_PLANES": out_planes, "RESIDUAL_PLANES": residual_planes, "SWIGLU": swiglu, "HAS_NORM": norm is not None,
        "HAS_RESIDUAL": residual is not None, "HAS_FACTOR": factor is not None,
        "EARLY": isinstance(first, PackedWeight),  # measured: plain weights fill the memory's queues by themselves
    }  # fmt: skip
    grid = (blocks, x.shape[0])
    around = (x, x if norm is None else norm, out if residual is None else residual, x if factor is None else factor)
    shape = (*rows, size_in)
    if isinstance(first, PackedWeight):
        words = [w.packed for w in packed] + [first.packed] * (3 - len(packed))
        scales = [w.scale for w in packed] + [first.scale] * (3 - len(packed))
        launch(
            packed_gemv_kernel, grid, *around, *words, *scales, out, eps, *shape, first.bits, first.group_size,
            tile.rows, tile.columns, device=x.device, warps=tile.warps, ASSEMBLY=x.is_cuda, **flags,
        )  # fmt: skip
    else:
        plain = [*weights, *[first] * (3 - len(weights))]
        launch(
            gemv_kernel, grid, *around, *plain, out, eps, *shape, tile.rows, tile.columns,
            device=x.device, warps=tile.warps, IN_PLANES=in_planes, **flags,
        )  # fmt: skip


def choose_tile(weight: Tensor | PackedWeight, shapes: Sequence[tuple[int, int]], swiglu: bool) -> Tile:
    """Tiles that measured best for the 11B's matrices on an H200 (tests/benchmarks/gemv_tiles.py)."""
    rows, size_in = sum(shape[0] for shape in shapes), shapes[0][1]
    if not isinstance(weight, PackedWeight):
        columns = min(triton.next_power_of_2(size_in), 4096 if size_in <= 4096 else 2048)
        return Tile(4, columns, min(max(columns // 512, 1), 8))
    if weight.bits == 8:
        long, small = size_in > 4096, rows <= 4096
        tile = Tile(4, 256, 4) if swiglu or long else Tile(4, 128, 4) if small else Tile(8, 128, 4)
    else:
        tile = Tile(16, 128, 4) if rows > 65536 else Tile(4, 128, 4)
    quads = triton.next_power_of_2(size_in * weight.bits // 128)
    return tile if quads >= tile.columns else Tile(tile.rows, quads, max(1, tile.warps * quads // tile.columns))
