"""Multiply by packed matrices on a GPU: few rows with our own kernel, many with the dequantized matrix."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mllama_cli.kernels.cuda import packed_matmul
from mllama_cli.kernels.cuda.lookup import fp8_value, table_value
from mllama_cli.kernels.cuda.unpack import unit_of
from mllama_cli.kernels.packed import PackedWeight

MAX_PACKED_MATMUL_ROWS = 128
"""Rows up to which reading the packed words again for every 64 rows is faster than dequantizing them first."""


@triton.jit
def dequantize_kernel(
    packed, scale, out, words, columns, group, groups, BITS: tl.constexpr, CODE: tl.constexpr, BLOCK: tl.constexpr
):
    """Dequantize BLOCK words of one row in each program."""
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    PER_WORD: tl.constexpr = 32 // BITS
    index = tl.arange(0, PER_WORD)
    bits = tl.load(packed + row * words + word, mask=word < words, other=0)
    number = (bits[:, None] >> (index * BITS)[None, :]) & ((1 << BITS) - 1)
    column = word[:, None] * PER_WORD + index[None, :]
    inside = column < columns
    factor = tl.load(scale + row * groups + column // group, mask=inside, other=0.0).to(tl.float32)
    if CODE == "int":
        value = (number - (1 << (BITS - 1))).to(tl.float32)
    elif CODE == "fp8":
        value = fp8_value(number) * unit_of(CODE, 0)
    else:
        value = table_value(number, CODE)
    value *= factor
    tl.store(out + row * columns + column, value.to(out.dtype.element_ty), mask=inside)


def dequantize(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return the matrix [out, in], multiplied in float32 and rounded once, as in kernels/packed.py."""
    rows, columns = weight.shape
    out = torch.empty(rows, columns, dtype=dtype, device=weight.packed.device)
    words = weight.packed.shape[1]
    dequantize_kernel[(rows, triton.cdiv(words, 256))](
        weight.packed, weight.scale, out, words, columns, weight.group_size, weight.scale.shape[1], weight.bits,
        weight.code, 256, num_warps=4,
    )  # fmt: skip
    return out


def quantized_linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """Multiply x [..., in] by the transposed matrix -> [..., out], in x's dtype.

    For more than MAX_PACKED_MATMUL_ROWS rows, the dequantized matrix takes memory during the product.
    """
    rows = x.numel() // weight.shape[1]
    if 0 < rows <= MAX_PACKED_MATMUL_ROWS and packed_matmul.supports(x, weight):
        flat = x.reshape(rows, weight.shape[1]).contiguous()
        result: Tensor = packed_matmul.packed_matmul(flat, weight).unflatten(0, x.shape[:-1])
        return result
    return F.linear(x, dequantize(weight, x.dtype))
