"""GGUF's number formats: blocks of bytes to float32, bit for bit what the gguf package makes of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockFormat:
    """``elements`` neighbours of a row in ``nbytes`` bytes. ``read`` takes [blocks, nbytes] to [blocks, elements].

    ``dense`` is the safetensors name of the dtype that holds its values: their own, or BF16 for quantized ones.
    """

    name: str
    elements: int
    nbytes: int
    dense: str
    read: Callable[[Tensor], Tensor]


def dequantize(data: Tensor, form: BlockFormat) -> Tensor:
    """Return the values of whole blocks as a flat tensor: float32, or in their own dtype if they are not quantized.

    ``data`` are their bytes: uint8, flat.
    """
    return form.read(data.view(-1, form.nbytes)).reshape(-1)


def _plain(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda data: data.reshape(-1).view(dtype)


def _half(data: Tensor) -> Tensor:
    """Return float16 numbers in bytes [blocks, 2] as float32 [blocks, 1]."""
    return data.contiguous().view(torch.float16).float()


def _nibbles(data: Tensor) -> Tensor:
    """Return the low halves of bytes [..., n], then their high halves: [..., 2n]."""
    return torch.cat((data & 15, data >> 4), -1)


def _fifth_bits(data: Tensor) -> Tensor:
    """Return the 32 bits of 4 bytes [blocks, 4], lowest first, as 16 or 0: [blocks, 32]."""
    bits = (data[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(1) << 4


def _q4_0(data: Tensor) -> Tensor:
    return (_nibbles(data[:, 2:]).float() - 8).mul_(_half(data[:, :2]))


def _q4_1(data: Tensor) -> Tensor:
    return _nibbles(data[:, 4:]).float().mul_(_half(data[:, :2])).add_(_half(data[:, 2:4]))


def _q5_0(data: Tensor) -> Tensor:
    q = _nibbles(data[:, 6:]) | _fifth_bits(data[:, 2:6])
    return (q.float() - 16).mul_(_half(data[:, :2]))


def _q5_1(data: Tensor) -> Tensor:
    q = _nibbles(data[:, 8:]) | _fifth_bits(data[:, 4:8])
    return q.float().mul_(_half(data[:, :2])).add_(_half(data[:, 2:4]))


def _q8_0(data: Tensor) -> Tensor:
    return data[:, 2:].view(torch.int8).float().mul_(_half(data[:, :2]))


def _scales_and_minima(data: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales and minima of the 8 groups of a K block, each [blocks, 8, 1], from its first 16 bytes.

    They are two float16 factors, and 6-bit integers in 12 bytes: the first 4 scales and minima in the lower bits of 8
    bytes, the others in the upper 2 bits of these and in the halves of 4 more.
    """
    low_scale, low_minimum, high = data[:, 4:8], data[:, 8:12], data[:, 12:16]
    scale = torch.cat((low_scale & 63, (high & 15) | ((low_scale >> 2) & 48)), 1)
    minimum = torch.cat((low_minimum & 63, (high >> 4) | ((low_minimum >> 2) & 48)), 1)
    factors = data[:, :4].contiguous().view(torch.float16).float()
    return (factors[:, :1] * scale)[..., None], (factors[:, 1:] * minimum)[..., None]


def _q4_k(data: Tensor) -> Tensor:
    scale, minimum = _scales_and_minima(data)
    q = _nibbles(data[:, 16:].unflatten(1, (4, 32)))  # of two groups each
    return q.view(-1, 8, 32).float().mul_(scale).sub_(minimum).flatten(1)


def _q5_k(data: Tensor) -> Tensor:
    scale, minimum = _scales_and_minima(data)
    q = _nibbles(data[:, 48:].unflatten(1, (4, 32))).view(-1, 8, 32)
    fifth = (data[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None]) & 1
    return (q | (fifth << 4)).float().mul_(scale).sub_(minimum).flatten(1)


def _q6_k(data: Tensor) -> Tensor:
    low = data[:, :128].unflatten(1, (2, 1, 64)) >> torch.tensor([[0], [4]], dtype=torch.uint8)
    high = data[:, 128:192].unflatten(1, (2, 1, 32)) >> torch.tensor([[0], [2], [4], [6]], dtype=torch.uint8)
    q = (low & 15).reshape(-1, 8, 32) | ((high & 3).reshape(-1, 8, 32) << 4)
    scale = _half(data[:, 208:]) * data[:, 192:208].view(torch.int8)
    return q.view(-1, 16, 16).float().sub_(32).mul_(scale[..., None]).flatten(1)


FORMATS = {
    0: BlockFormat("F32", 1, 4, "F32", _plain(torch.float32)),
    1: BlockFormat("F16", 1, 2, "F16", _plain(torch.float16)),
    30: BlockFormat("BF16", 1, 2, "BF16", _plain(torch.bfloat16)),
    2: BlockFormat("Q4_0", 32, 18, "BF16", _q4_0),
    3: BlockFormat("Q4_1", 32, 20, "BF16", _q4_1),
    6: BlockFormat("Q5_0", 32, 22, "BF16", _q5_0),
    7: BlockFormat("Q5_1", 32, 24, "BF16", _q5_1),
    8: BlockFormat("Q8_0", 32, 34, "BF16", _q8_0),
    12: BlockFormat("Q4_K", 256, 144, "BF16", _q4_k),
    13: BlockFormat("Q5_K", 256, 176, "BF16", _q5_k),
    14: BlockFormat("Q6_K", 256, 210, "BF16", _q6_k),
}
"""The formats that are read, by their numbers in files."""
