"""A product with bias and GELU in one kernel: fewer bytes to move, and GELU's arithmetic while the next tile loads.

A persistent kernel with Hopper's tensor descriptors. For the vision tower's 6,432 x 5,120 x 1,280 an H200 takes 156 us,
where cuBLAS takes 138 and GELU alone 34. cuBLAS's own epilogue has only the tanh form of GELU.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mllama_cli.kernels.cuda.elementwise import gelu_of
from mllama_cli.kernels.cuda.launch import multiprocessors

TILE_ROWS, TILE_COLUMNS, DEPTH = 128, 256, 64
GROUP = 8
"""Rows of tiles that are computed together, so that both matrices stay in the cache."""


@triton.jit(do_not_specialize=["rows"])
def product_gelu_kernel(
    x, weight, bias, out, rows, columns, depth,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Compute every PROGRAMS-th tile in each program. ``columns`` is a multiple of TILE_COLUMNS."""
    HALF: tl.constexpr = TILE_COLUMNS // 2
    down = tl.cdiv(rows, TILE_ROWS)
    across = columns // TILE_COLUMNS
    for tile in tl.range(tl.program_id(0), down * across, PROGRAMS, flatten=True):
        first = tile // (GROUP * across) * GROUP
        height = tl.minimum(down - first, GROUP)
        row = (first + tile % (GROUP * across) % height) * TILE_ROWS
        column = tile % (GROUP * across) // height * TILE_COLUMNS
        sums = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
        for k in range(0, depth, DEPTH):
            sums = tl.dot(x.load([row, k]), weight.load([column, k]).T, sums)
        # In halves, so that the results take half the shared memory.
        left, right = tl.permute(tl.reshape(sums, [TILE_ROWS, 2, HALF]), [0, 2, 1]).split()
        left += tl.load(bias + column + tl.arange(0, HALF)).to(tl.float32)[None, :]
        out.store([row, column], gelu_of(left).to(out.dtype))
        right += tl.load(bias + column + HALF + tl.arange(0, HALF)).to(tl.float32)[None, :]
        out.store([row, column + HALF], gelu_of(right).to(out.dtype))


def product_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return gelu(x @ weight.T + bias) of contiguous x [..., in], weight [out, in] and bias [out]: see ``supports``."""
    flat = x.view(-1, x.shape[-1])
    (rows, depth), columns = flat.shape, weight.shape[0]
    out = x.new_empty(rows, columns)
    programs = min(multiprocessors(x.device), triton.cdiv(rows, TILE_ROWS) * (columns // TILE_COLUMNS))

    def blocks(tensor: Tensor, height: int, width: int) -> TensorDescriptor:
        return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [height, width])

    product_gelu_kernel[(programs,)](
        blocks(flat, TILE_ROWS, DEPTH), blocks(weight, TILE_COLUMNS, DEPTH), bias,
        blocks(out, TILE_ROWS, TILE_COLUMNS // 2), rows, columns, depth,
        TILE_ROWS, TILE_COLUMNS, DEPTH, GROUP, programs, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out.view(*x.shape[:-1], columns)


def supports(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether ``product_gelu`` takes these."""
    return (
        bias is not None
        and x.dtype == weight.dtype == bias.dtype
        and x.is_contiguous()
        and weight.is_contiguous()
        and weight.shape[0] % TILE_COLUMNS == 0
        and weight.shape[1] % 8 == 0
        and x.data_ptr() % 16 == weight.data_ptr() % 16 == 0
    )
