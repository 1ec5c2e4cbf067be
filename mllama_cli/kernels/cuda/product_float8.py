"""A product of float8 matrices with scales, bias and GELU in one kernel, whose result may be float8 again.

A persistent kernel with Hopper's tensor descriptors. For the vision tower's 6,432 x 5,120 x 1,280 with GELU an H200
takes 98 us, where cuBLAS takes 79 without it; without GELU this kernel is as fast as cuBLAS.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mllama_cli.kernels.cuda.elementwise import gelu_of
from mllama_cli.kernels.cuda.launch import multiprocessors

TILE_ROWS, TILE_COLUMNS, DEPTH = 128, 256, 128
GROUP = 8
"""Rows of tiles that are computed together, so that both matrices stay in the cache."""


@triton.jit
def finished(sums, scales, bias, column, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr):
    """Return some columns of the result, from ``column`` on, by their sums."""
    index = column + tl.arange(0, WIDTH)
    sums *= tl.load(scales + index)[None, :]
    if HAS_BIAS:
        sums += tl.load(bias + index).to(tl.float32)[None, :]
    if GELU:
        sums = gelu_of(sums)
    return sums


@triton.jit(do_not_specialize=["rows"])
def product_float8_kernel(
    x, x_scales, weight, scales, bias, out, rows, columns, depth,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    HAS_SCALES: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    """Compute every n-th tile in each of n programs. ``columns`` is a multiple of TILE_COLUMNS."""
    HALF: tl.constexpr = TILE_COLUMNS // 2
    down = tl.cdiv(rows, TILE_ROWS)
    across = columns // TILE_COLUMNS
    for tile in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=True):
        first = tile // (GROUP * across) * GROUP
        height = tl.minimum(down - first, GROUP)
        row = (first + tile % (GROUP * across) % height) * TILE_ROWS
        column = tile % (GROUP * across) // height * TILE_COLUMNS
        sums = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
        for k in range(0, depth, DEPTH):
            sums = tl.dot(x.load([row, k]), weight.load([column, k]).T, sums)
        if HAS_SCALES:
            index = row + tl.arange(0, TILE_ROWS)
            sums *= tl.load(x_scales + index, mask=index < rows, other=0.0)[:, None]
        # In halves, so that the results take half the shared memory.
        left, right = tl.permute(tl.reshape(sums, [TILE_ROWS, 2, HALF]), [0, 2, 1]).split()
        left = finished(left, scales, bias, column, HALF, HAS_BIAS, GELU)
        out.store([row, column], left.to(out.dtype))
        right = finished(right, scales, bias, column + HALF, HALF, HAS_BIAS, GELU)
        out.store([row, column + HALF], right.to(out.dtype))


def product_float8(
    x: Tensor,
    x_scales: Tensor | None,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    gelu: bool = False,
) -> Tensor:
    """Return x_scales * x @ (scales * weight).T + bias, or GELU of that, in ``dtype``.

    x float8 [..., in] and weight float8 [out, in] are contiguous, ``x_scales`` float32 [...] or None for 1, ``scales``
    float32 [out], bias [out]; see ``supports``. What is too large for float8 becomes its largest number.
    """
    flat = x.view(-1, x.shape[-1])
    (rows, depth), columns = flat.shape, weight.shape[0]
    out = torch.empty(rows, columns, dtype=dtype, device=x.device)
    programs = min(multiprocessors(x.device), triton.cdiv(rows, TILE_ROWS) * (columns // TILE_COLUMNS))

    def blocks(tensor: Tensor, height: int, width: int) -> TensorDescriptor:
        return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [height, width])

    product_float8_kernel[(programs,)](
        blocks(flat, TILE_ROWS, DEPTH), scales if x_scales is None else x_scales, blocks(weight, TILE_COLUMNS, DEPTH),
        scales, scales if bias is None else bias, blocks(out, TILE_ROWS, TILE_COLUMNS // 2), rows, columns, depth,
        TILE_ROWS, TILE_COLUMNS, DEPTH, GROUP, x_scales is not None, bias is not None, gelu,
        num_warps=8, num_stages=3,
    )  # fmt: skip
    return out.view(*x.shape[:-1], columns)


def supports(weight: Tensor) -> bool:
    """Return whether ``product_float8`` takes this matrix."""
    return weight.shape[0] % TILE_COLUMNS == 0 and weight.shape[1] % 16 == 0
