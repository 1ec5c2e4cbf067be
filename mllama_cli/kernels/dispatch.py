"""Which kernel runs is decided here."""

from torch import Tensor

from mllama_cli.kernels import reference
from mllama_cli.kernels.reference import PackedWeight


def quantized_linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """x [..., in] times the transposed matrix -> [..., out], in x's dtype."""
    return reference.quantized_linear(x, weight)
