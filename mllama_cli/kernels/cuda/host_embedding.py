"""Embedding lookup in a table in pinned host memory, which the GPU itself reads over the bus."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def gather_kernel(ids, table, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """One program: BLOCK columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    source = tl.maximum(tl.load(ids + row), 0).to(tl.int64)
    values = tl.load(table + source * SIZE + column, mask=inside, other=0.0)
    tl.store(out + row * SIZE + column, values, mask=inside)


def gather(ids: Tensor, table: Tensor) -> Tensor:
    """ids [...] on the GPU, table [rows, size] that it can read, pinned or its own -> [..., size] on the GPU.

    Ids are not checked, but for negative ones, which count as 0.
    """
    ids = ids.contiguous()
    size = table.shape[1]
    out = torch.empty(*ids.shape, size, dtype=table.dtype, device=ids.device)
    if ids.numel():
        gather_kernel[(ids.numel(), triton.cdiv(size, BLOCK))](ids, table, out, size, BLOCK, num_warps=4)
    return out
