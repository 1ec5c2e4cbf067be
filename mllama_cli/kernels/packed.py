"""Packed 4- and 8-bit matrices, with the torch reference that every kernel is tested against.

The layout is that of compressed-tensors' ``pack-quantized``: 32 / bits numbers in an int32 word along the input
dimension, the first in the lowest bits; one scale for each group of a row. What a number stands for is its ``code``:

- int: the symmetric integer q, stored as q + 2^(bits - 1)
- nf4, fp4: one of 16 values of a table, as in bitsandbytes
- fp8: a float of 8 bits, E4M3
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.kernels.codes import TABLES, Code

BITS = (4, 8)

UNPACKED_BYTES = 64 * 2**20
"""Bytes of a matrix that ``quantized_linear`` dequantizes at a time."""


@dataclass(frozen=True)
class PackedWeight:
    """A matrix [out, in]: ``packed`` int32 [out, ceil(in * bits / 32)], ``scale`` [out, groups], groups dividing in."""

    packed: Tensor
    scale: Tensor
    shape: tuple[int, int]
    bits: int
    code: Code = "int"

    @property
    def group_size(self) -> int:
        """Return how many neighbours along the input dimension share a scale."""
        return self.shape[1] // self.scale.shape[1]

    def rows(self, start: int, stop: int) -> "PackedWeight":
        """Return rows [start, stop) of the matrix, in the same memory."""
        packed, scale = self.packed[start:stop], self.scale[start:stop]
        return PackedWeight(packed, scale, (packed.shape[0], self.shape[1]), self.bits, self.code)

    def part(self, rows: slice, columns: slice) -> "PackedWeight":
        """Return some rows and columns; columns must begin and end with a word. A cut group becomes smaller ones."""
        start, stop = columns.start, columns.stop
        words = self.packed[rows, start * self.bits // 32 : -(-stop * self.bits // 32)].contiguous()
        scale = scale_part(self.scale[rows], columns, self.shape[1]).contiguous()
        return PackedWeight(words, scale, (words.shape[0], stop - start), self.bits, self.code)

    @cached_property
    def problem(self) -> str:
        """Describe the first mismatch between tensors and shape; empty if there is none. Checked once."""
        (n, k), bits, packed, scale = self.shape, self.bits, self.packed, self.scale
        if bits not in BITS or n < 1 or k < 1 or bits != {"int": bits, "fp8": 8}.get(self.code, 4):
            return f"{bits} bits ({self.code}) of shape {n} x {k}"
        if packed.dtype != torch.int32 or packed.shape != (n, -(-k * bits // 32)):
            return f"weights {packed.dtype} {list(packed.shape)} for {n} x {k} in {bits} bits"
        if not scale.dtype.is_floating_point or scale.dim() != 2 or scale.shape[0] != n:
            return f"scales {scale.dtype} {list(scale.shape)} for {n} rows"
        if scale.shape[1] < 1 or k % scale.shape[1]:
            return f"{scale.shape[1]} groups in rows of {k}"
        if not packed.is_contiguous() or not scale.is_contiguous() or packed.device != scale.device:
            return "tensors that are not contiguous"
        return ""


def scale_part(scale: Tensor, columns: slice, inputs: int) -> Tensor:
    """Return the scales [out, groups] of some columns of a matrix with ``inputs`` columns."""
    if scale.shape[1] == 1:
        return scale
    size, start, count = inputs // scale.shape[1], columns.start, columns.stop - columns.start
    each = math.gcd(size, start, count)
    return scale[:, torch.arange(start, columns.stop, each, device=scale.device) // size]


def pack(q: Tensor, bits: int) -> Tensor:
    """Pack integers [out, in] from -2^(bits-1) to 2^(bits-1) - 1 into int32 words [out, ceil(in * bits / 32)]."""
    per_word = 32 // bits
    unsigned = F.pad(q.to(torch.int32) + (1 << (bits - 1)), (0, -q.shape[1] % per_word)).unflatten(1, (-1, per_word))
    words: Tensor = unsigned[..., 0].clone()
    for index in range(1, per_word):
        words |= unsigned[..., index] << (bits * index)
    return words


def unpack(weight: PackedWeight) -> Tensor:
    """Return the numbers without their scales: float32 [out, in]."""
    shifts = torch.arange(0, 32, weight.bits, dtype=torch.int32, device=weight.packed.device)
    unsigned = (weight.packed[..., None] >> shifts) & ((1 << weight.bits) - 1)
    unsigned = unsigned.flatten(1)[:, : weight.shape[1]]
    if weight.code == "int":
        return (unsigned - (1 << (weight.bits - 1))).float()
    if weight.code == "fp8":
        return unsigned.to(torch.uint8).view(torch.float8_e4m3fn).float()
    return torch.tensor(TABLES[weight.code], device=unsigned.device)[unsigned]


def dequantize(weight: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the matrix [out, in]: numbers times scales, multiplied in float32 and rounded once."""
    grouped = unpack(weight).unflatten(1, (weight.scale.shape[1], -1))
    result: Tensor = (grouped * weight.scale.float()[..., None]).flatten(1).to(dtype)
    return result


def quantized_linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """Multiply x [..., in] by the transposed matrix -> [..., out], in x's dtype.

    Dequantizes some output rows at a time: a whole output layer would take 2 GB in float32.
    """
    rows, columns = weight.shape
    step = max(1, UNPACKED_BYTES // (4 * columns))
    if rows <= step:
        return F.linear(x, dequantize(weight, x.dtype))
    parts = []
    for start in range(0, rows, step):
        parts.append(F.linear(x, dequantize(weight.rows(start, start + step), x.dtype)))
    return torch.cat(parts, dim=-1)
