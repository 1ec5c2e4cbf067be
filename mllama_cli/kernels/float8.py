"""Products of rounded rows with rounded matrices, both float8_e4m3fn: on GPUs twice as fast as in 16 bits.

Sums are in float32 or, on tensor cores, nearly so. ``has_float8`` says where these are worth it; elsewhere torch's
operations compute the same, slowly.
"""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.kernels.available import image_kernels_available, runs_right

MAX_FLOAT8 = 448.0
"""The largest number of float8_e4m3fn."""

SMALLEST_ROW = 1e-12
"""What the largest number of a row counts as at least, so that its scale is not 0."""


class Rounded(NamedTuple):
    """Rows [..., size] as float8_e4m3fn ``values`` and float32 ``scales`` [...], by which they are multiplied.

    Without scales the values are meant: numbers of up to MAX_FLOAT8, to which larger ones are rounded, and exact to
    3 bits from 2**-6 on.
    """

    values: Tensor
    scales: Tensor | None = None

    @classmethod
    def rows(cls, x: Tensor) -> "Rounded":
        """Round to the nearest, each row with a scale of its own."""
        wide = x.float()
        scales = wide.abs().amax(dim=-1).clamp(min=SMALLEST_ROW) / MAX_FLOAT8
        return cls((wide / scales[..., None]).to(torch.float8_e4m3fn), scales)

    @classmethod
    def unscaled(cls, x: Tensor) -> "Rounded":
        """Round to the nearest, without scales."""
        return cls(x.clamp(-MAX_FLOAT8, MAX_FLOAT8).to(torch.float8_e4m3fn))

    def dequantized(self) -> Tensor:
        """Return the numbers as float32."""
        wide = self.values.float()
        return wide if self.scales is None else wide * self.scales[..., None]


def add_layer_norm(
    x: Tensor, branch: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Rounded]:
    """Return x + gate * branch, and the rounded rows of its LayerNorm."""
    if has_float8(x.device, x.dtype) and not torch.is_grad_enabled():
        return _add_layer_norm(x, branch, gate, weight, bias, eps)
    return _add_layer_norm_reference(x, branch, gate, weight, bias, eps)


def linear(x: Rounded, weight: Rounded, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Multiply rows [..., in] by the transposed matrix [out, in] and add bias [out] -> [..., out] in ``dtype``."""
    if has_float8(x.values.device, dtype) and not torch.is_grad_enabled():
        return _product(x, weight, bias, dtype)
    return _reference(x, weight, bias).to(dtype)


def linear_gelu(x: Rounded, weight: Rounded, bias: Tensor | None, dtype: torch.dtype) -> Rounded:
    """Return gelu(linear(x)), with erf, rounded without scales; ``dtype`` is that of the network."""
    if has_float8(x.values.device, dtype) and not torch.is_grad_enabled():
        return Rounded(_product(x, weight, bias, torch.float8_e4m3fn, gelu=True))
    return Rounded.unscaled(F.gelu(_reference(x, weight, bias)))


def takes(weight: Tensor) -> bool:
    """Return whether there is a product with a matrix of this shape on its device."""
    if not weight.is_cuda:
        return True
    from mllama_cli.kernels.cuda.product_float8 import supports

    return supports(weight)


@cache
def has_float8(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether our kernels run here and compute what torch's operations do, by trying them."""
    if not image_kernels_available(device, dtype):
        return False

    def error() -> float:
        generator = torch.Generator().manual_seed(0)
        # Each form of the product that a layer of the tower has.
        shapes = ((1000, 256), (256,), (256,), (512, 256), (512,), (256, 512))
        x, scale, shift, first, inner_bias, second = (
            torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes
        )
        wide, narrow = Rounded.rows(first), Rounded.rows(second)
        norm = (x, x, None, scale, shift, 1e-5)
        _, rows = _add_layer_norm(*norm)
        inner = _product(rows, wide, inner_bias, torch.float8_e4m3fn, gelu=True)
        ours = (
            rows.dequantized(),
            _product(rows, wide, None, dtype),
            inner,
            _product(Rounded(inner), narrow, shift, dtype),
        )
        exact = (
            _add_layer_norm_reference(*norm)[1].dequantized(),
            _reference(rows, wide, None),
            Rounded.unscaled(F.gelu(_reference(rows, wide, inner_bias))).values,
            _reference(Rounded(inner), narrow, shift),
        )
        pairs = ((one.float(), other.float()) for one, other in zip(ours, exact, strict=True))
        return max(float((one - other).norm() / other.norm()) for one, other in pairs)

    return runs_right(error)


def _add_layer_norm(
    x: Tensor, branch: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Rounded]:
    from mllama_cli.kernels.cuda import elementwise

    total, values, scales = elementwise.add_layer_norm_float8(x, branch, gate, weight, bias, eps)
    return total, Rounded(values, scales)


def _add_layer_norm_reference(
    x: Tensor, branch: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Rounded]:
    total = x + (branch if gate is None else gate * branch)
    return total, Rounded.rows(F.layer_norm(total.float(), weight.shape, weight.float(), bias.float(), eps))


def _product(x: Rounded, weight: Rounded, bias: Tensor | None, dtype: torch.dtype, *, gelu: bool = False) -> Tensor:
    from mllama_cli.kernels.cuda.product_float8 import product_float8

    assert weight.scales is not None
    return product_float8(x.values, x.scales, weight.values, weight.scales, bias, dtype, gelu=gelu)


def _reference(x: Rounded, weight: Rounded, bias: Tensor | None) -> Tensor:
    return F.linear(x.dequantized(), weight.dequantized(), None if bias is None else bias.float())
