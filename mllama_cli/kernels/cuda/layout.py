"""How activations lie: plain, or in "planes" for packed weights.

In planes element k of a vector lies at (k % P) * (size / P) + k / P, P being the numbers in an int32 word, so that
neighbouring words read neighbouring activations.
"""

import triton
import triton.language as tl
from torch import Tensor

from mllama_cli.kernels.packed import PackedWeight


@triton.jit
def place(index, SIZE: tl.constexpr, PLANES: tl.constexpr):
    """Where element ``index`` of a vector of SIZE lies."""
    if PLANES == 1:
        return index
    else:
        return (index % PLANES) * (SIZE // PLANES) + index // PLANES


def planes(weight: Tensor | PackedWeight) -> int:
    """The layout in which a weight's kernel wants its activations."""
    return 32 // weight.bits if isinstance(weight, PackedWeight) else 1


def to_planes(x: Tensor, count: int) -> Tensor:
    """A vector, or rows of vectors, in another layout."""
    return x if count == 1 else x.unflatten(-1, (-1, count)).transpose(-1, -2).flatten(-2).contiguous()
