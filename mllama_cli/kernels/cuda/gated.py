"""SiLU of a gate times the up projection, where no product can do that itself; see engine/cuda/product.py."""

import triton
import triton.language as tl
from torch import Tensor

from mllama_cli.kernels.cuda.launch import gdc_launch_dependents, gdc_wait, launch
from mllama_cli.kernels.cuda.layout import offset_of

BLOCK = 1024


@triton.jit
def gated_kernel(both, out, SIZE: tl.constexpr, INTERLEAVE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    gdc_launch_dependents(PDL)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1)
    inside = index < SIZE
    gdc_wait(PDL)
    gate = tl.load(both + row * 2 * SIZE + index, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * SIZE + SIZE + index, mask=inside, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    tl.store(out + row * SIZE + offset_of(index, SIZE, INTERLEAVE), value.to(out.dtype.element_ty), mask=inside)


def gated(both: Tensor, out: Tensor, out_interleave: int) -> None:
    """Write silu(first half) * second half of the rows of ``both`` [B, 2 * size], plain, to out [B, size]."""
    rows, size = out.shape
    launch(
        gated_kernel, (triton.cdiv(size, BLOCK), rows), both, out, size, out_interleave, BLOCK,
        device=out.device, warps=4,
    )  # fmt: skip
