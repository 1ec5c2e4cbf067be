"""The product with bias and GELU against torch's operations."""

import pytest
import torch
import torch.nn.functional as F

from tests.triton_here import DEVICE, apart  # isort: skip  (first: it prepares Triton)
from mllama_cli.kernels.cuda import product_gelu as kernel

DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


@pytest.mark.parametrize(("shape", "columns"), [((2, 130, 72), 512), ((1, 7, 64), 256), ((1300, 64), 256)])
def test_product_with_bias_and_gelu(shape: tuple[int, ...], columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator).to(DEVICE, DTYPE) for size in (shape, (columns, shape[-1]), (columns,))
    )
    assert kernel.supports(x, weight, bias)
    ours = kernel.product_gelu(x, weight, bias)
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    assert ours.shape == exact.shape
    assert apart(ours, exact) < (1e-2 if DEVICE.type == "cuda" else 1e-6)


def test_shapes_that_are_left_to_torch() -> None:
    x, bias = torch.zeros(4, 64), torch.zeros(256)
    assert not kernel.supports(x, torch.zeros(256, 64), None)
    assert not kernel.supports(x, torch.zeros(100, 64), torch.zeros(100))
    assert not kernel.supports(x[:, :60].contiguous(), torch.zeros(256, 60), bias)
    assert not kernel.supports(x.t().contiguous().t(), torch.zeros(256, 64), bias)
