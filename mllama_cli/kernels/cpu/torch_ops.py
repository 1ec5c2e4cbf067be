"""Multiply by packed weights without a compiler: torch's own operators, and dequantization.

torch's operators have a layout of their own, so the first product makes a second copy of the matrix. They are fast only
with bfloat16 activations.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from mllama_cli.kernels.packed import PackedWeight, dequantize

_INT4PACK_GROUPS = (32, 64, 128, 256)  # the group sizes of torch's 4-bit operator
_prepared = WeakIdKeyDictionary()  # packed tensor -> the operator's weight and scales


def supports(weight: PackedWeight) -> bool:
    """Return whether torch has an operator for this matrix; with other shapes they fail or read out of bounds."""
    n, k = weight.shape
    if n % 16 or k % 64:
        return False
    return weight.group_size in _INT4PACK_GROUPS if weight.bits == 4 else weight.scale.shape[1] == 1


def packed(x: Tensor, weight: PackedWeight) -> Tensor:
    """Multiply x [rows, in] float32, rounded to bfloat16, by a packed matrix -> float32 [rows, out]."""
    if weight.packed not in _prepared:
        _prepared[weight.packed] = _four_bits(weight) if weight.bits == 4 else _eight_bits(weight)
    matrix, scales = _prepared[weight.packed]
    narrow = x.to(torch.bfloat16)
    if weight.bits == 4:
        out = torch._weight_int4pack_mm_for_cpu(narrow, matrix, weight.group_size, scales)
    else:
        out = torch._weight_int8pack_mm(narrow, matrix, scales)
    return out.float()


def decode(weight: PackedWeight, start: int, stop: int, out: Tensor) -> None:
    """Dequantize rows ``start`` to ``stop`` of a packed matrix into ``out``, float32 [stop - start, in]."""
    if weight.code != "int":
        out.copy_(dequantize(weight.rows(start, stop)))
        return
    groups = weight.scale.shape[1]
    whole = _unsigned(weight.packed[start:stop], weight.bits)[:, : weight.shape[1]]
    grouped = out.view(stop - start, groups, -1)
    grouped.copy_(whole.unflatten(1, (groups, -1)))
    grouped.sub_(1 << (weight.bits - 1)).mul_(weight.scale[start:stop].float()[..., None])


def _unsigned(packed: Tensor, bits: int) -> Tensor:
    """Return q + 2^(bits - 1) as uint8 [rows, words * 32 / bits]."""
    each = packed.contiguous().view(torch.uint8)
    return each if bits == 8 else torch.stack((each & 15, each >> 4), dim=-1).flatten(1)


def _four_bits(weight: PackedWeight) -> tuple[Tensor, Tensor]:
    whole = _unsigned(weight.packed, 4)[:, : weight.shape[1]].to(torch.int32)
    scale = weight.scale.to(torch.bfloat16).T
    matrix = torch._convert_weight_to_int4pack_for_cpu(whole, 2)
    return matrix, torch.stack((scale, torch.zeros_like(scale)), dim=-1).contiguous()


def _eight_bits(weight: PackedWeight) -> tuple[Tensor, Tensor]:
    whole = _unsigned(weight.packed, 8)[:, : weight.shape[1]]
    return (whole ^ 128).view(torch.int8).contiguous(), weight.scale[:, 0].to(torch.bfloat16)
