"""Random matrices as checkpoints store them, and reference products."""

import torch
from torch import Tensor

from mllama_cli.kernels.codes import Code
from mllama_cli.kernels.packed import PackedWeight, dequantize, pack


def packed_matrix(
    n: int, k: int, bits: int, groups: int = 1, scale: torch.dtype = torch.bfloat16, seed: int = 0
) -> PackedWeight:
    """Return a random packed matrix with every integer of ``bits`` bits; scales differ by a factor of three."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-(1 << bits - 1), 1 << bits - 1, (n, k), generator=generator)
    scales = torch.rand(n, groups, generator=generator) * 0.01 + 0.005
    return PackedWeight(pack(q, bits), scales.to(scale), (n, k), bits)


def coded_matrix(
    n: int, k: int, code: Code, groups: int = 1, scale: torch.dtype = torch.float32, seed: int = 0
) -> PackedWeight:
    """Return a random matrix of numbers that are not integers, with every code; scales differ by a factor of three."""
    generator = torch.Generator().manual_seed(seed)
    bits = 8 if code == "fp8" else 4
    numbers = torch.randint(0, 256, (n, -(-k * bits // 32) * 4), generator=generator, dtype=torch.uint8)
    if code == "fp8":
        numbers[numbers & 127 == 127] = 0  # no numbers
    scales = torch.rand(n, groups, generator=generator) * 0.01 + 0.005
    return PackedWeight(numbers.view(torch.int32), scales.to(scale), (n, k), bits, code)


def rows(m: int, k: int, seed: int = 1) -> Tensor:
    return torch.randn(m, k, generator=torch.Generator().manual_seed(seed))


def exact(x: Tensor, weight: PackedWeight | Tensor) -> Tensor:
    """Return the product in float64."""
    matrix = dequantize(weight, torch.float32) if isinstance(weight, PackedWeight) else weight
    return x.double() @ matrix.double().T


def rounded_to_int8(x: Tensor) -> Tensor:
    """Round x as the 8-bit kernels do: every 32 values of a row to multiples of a 127th of their largest."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % 32)).double().unflatten(-1, (-1, 32))
    step = padded.abs().amax(-1, keepdim=True) / 127
    whole = torch.where(step > 0, padded / step, 0).round()
    return (whole * step).flatten(-2)[..., : x.shape[-1]]


def error(ours: Tensor, truth: Tensor) -> float:
    """Return the relative error, by norms."""
    return float((ours.double() - truth).norm() / truth.norm())
