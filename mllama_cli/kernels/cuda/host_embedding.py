"""Embedding lookup in pinned host memory, which the GPU reads over the bus."""

import torch
import triton
import triton.language as tl
from torch import Tensor

GATHER_BLOCK = 1024


@triton.jit
def gather_kernel(ids, table, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Copy BLOCK columns of one row in each program."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    source = tl.maximum(tl.load(ids + row), 0).to(tl.int64)
    values = tl.load(table + source * SIZE + column, mask=inside, other=0.0)
    tl.store(out + row * SIZE + column, values, mask=inside)


def gather(ids: Tensor, table: Tensor) -> Tensor:
    """Look up ids [...] in a table [rows, size], pinned or on the GPU -> [..., size] on the ids' device.

    Negative ids count as 0; others are not checked.
    """
    ids = ids.contiguous()
    size = table.shape[1]
    out = torch.empty(*ids.shape, size, dtype=table.dtype, device=ids.device)
    if ids.numel():
        gather_kernel[(ids.numel(), triton.cdiv(size, GATHER_BLOCK))](ids, table, out, size, GATHER_BLOCK, num_warps=4)
    return out
