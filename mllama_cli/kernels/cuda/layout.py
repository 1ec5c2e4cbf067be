"""Layouts of activations: plain, or interleaved for packed weights.

Interleaved by P, the numbers in an int32 word, element k of a vector is at (k % P) * (size / P) + k / P, so that
adjacent words read adjacent activations.
"""

import triton
import triton.language as tl
from torch import Tensor

from mllama_cli.kernels.packed import PackedWeight


@triton.jit
def offset_of(index, SIZE: tl.constexpr, INTERLEAVE: tl.constexpr):
    """Return the offset of element ``index`` of a vector of SIZE."""
    if INTERLEAVE == 1:
        return index
    else:
        return (index % INTERLEAVE) * (SIZE // INTERLEAVE) + index // INTERLEAVE


def interleave_factor(weight: Tensor | PackedWeight) -> int:
    """Return the interleaving that a weight's kernel expects of its activations; 1 is plain."""
    return 32 // weight.bits if isinstance(weight, PackedWeight) else 1


def interleave(x: Tensor, factor: int) -> Tensor:
    """Interleave a plain vector, or rows of vectors."""
    return x if factor == 1 else x.unflatten(-1, (-1, factor)).transpose(-1, -2).flatten(-2).contiguous()


def reinterleave(x: Tensor, old: int, new: int) -> Tensor:
    """Return rows of vectors that are interleaved by ``old`` interleaved by ``new``."""
    if old == new:
        return x
    return interleave(x.unflatten(-1, (old, -1)).transpose(-1, -2).flatten(-2), new)
