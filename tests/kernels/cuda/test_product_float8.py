"""Float8 products and what rounds for them against torch's operations.

Results are in float32 where Triton's interpreter computes them: it does not round to float8 as a GPU does.
"""

import pytest
import torch

from tests.triton_here import DEVICE, apart  # isort: skip  (first: it prepares Triton)
from mllama_cli.kernels import float8
from mllama_cli.kernels.cuda import elementwise
from mllama_cli.kernels.cuda import product_float8 as kernel
from mllama_cli.kernels.float8 import Rounded

ON_GPU = DEVICE.type == "cuda"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
TOLERANCE = 1e-2 if ON_GPU else 1e-6


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(130, 144, 512), (7, 64, 256), (300, 256, 256)])
@pytest.mark.parametrize("gelu", [False, True])
def test_product_with_scales_of_rows_and_outputs(rows: int, depth: int, columns: int, gelu: bool) -> None:
    x, weight = Rounded.rows(3 * drawn(2, rows, depth)), Rounded.rows(drawn(columns, depth))
    bias = drawn(columns).to(DTYPE) if gelu else None
    assert kernel.supports(weight.values)
    assert weight.scales is not None
    ours = kernel.product_float8(x.values, x.scales, weight.values, weight.scales, bias, DTYPE, gelu=gelu)
    exact = x.dequantized().double() @ weight.dequantized().double().T
    if bias is not None:
        exact = torch.nn.functional.gelu(exact + bias.double())
    assert ours.shape == (2, rows, columns)
    assert apart(ours, exact) < TOLERANCE


def test_product_of_rows_without_scales() -> None:
    x, weight, bias = Rounded.unscaled(drawn(70, 128)), Rounded.rows(drawn(256, 128)), drawn(256).to(DTYPE)
    assert weight.scales is not None
    ours = kernel.product_float8(x.values, None, weight.values, weight.scales, bias, DTYPE)
    assert apart(ours, x.dequantized() @ weight.dequantized().T + bias.float()) < TOLERANCE


def test_matrices_that_are_left_to_torch() -> None:
    assert not kernel.supports(torch.zeros(480, 160))
    assert not kernel.supports(torch.zeros(256, 72))


@pytest.mark.parametrize("gated", [False, True])
def test_norm_with_a_scale_for_each_row(gated: bool) -> None:
    x, branch, weight, bias = (drawn(*shape).to(DTYPE) for shape in ((3, 5, 96), (3, 5, 96), (96,), (96,)))
    gate = torch.tensor([0.7], device=DEVICE, dtype=DTYPE) if gated else None
    total, values, scales = elementwise.add_layer_norm_float8(x, branch, gate, weight, bias, 1e-5)
    with torch.enable_grad():  # so that torch's operations are taken
        exact_total, exact = float8.add_layer_norm(x, branch, gate, weight, bias, 1e-5)
    assert exact.scales is not None
    assert apart(total, exact_total) < TOLERANCE
    assert apart(scales, exact.scales) < TOLERANCE
    # The interpreter errs by a bit here and there.
    assert apart(Rounded(values, scales).dequantized(), exact.dequantized()) < (2e-2 if ON_GPU else 0.1)
