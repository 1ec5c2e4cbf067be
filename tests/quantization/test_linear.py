"""A packed layer with adapters is the sum of its parts."""

import torch
from torch import Tensor

from mllama_cli.quantization.linear import AdaptedLinear
from mllama_cli.quantization.rounding import quantize_matrix
from mllama_cli.quantization.schemes import Scheme

OUTPUTS, INPUTS, RANK = 64, 128, 3


def adapted(weight: Tensor, a: Tensor, b: Tensor, kept: tuple[slice, slice] | None = None) -> AdaptedLinear:
    scheme = Scheme(4, 32)
    layer = AdaptedLinear(INPUTS, OUTPUTS, scheme, RANK)
    if kept is not None:
        layer.cut(*kept)
    layer.fill(quantize_matrix(weight, scheme, "rtn").weight)
    layer.fill_change(a, b)
    layer.exact = True
    return layer


def test_rows_and_columns_of_a_layer_with_adapters_give_parts_of_its_product() -> None:
    torch.manual_seed(0)
    weight, a, b = torch.randn(OUTPUTS, INPUTS), torch.randn(RANK, INPUTS), torch.randn(OUTPUTS, RANK)
    x = torch.randn(5, INPUTS)
    whole = adapted(weight, a, b)(x)
    every, halves = slice(0, INPUTS), (slice(0, 64), slice(64, 128))
    rows = [adapted(weight, a, b, (part, every))(x) for part in (slice(0, 32), slice(32, 64))]
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-5, atol=1e-4)
    columns = [adapted(weight, a, b, (slice(0, OUTPUTS), part))(x[:, part]) for part in halves]
    torch.testing.assert_close(sum(columns), whole, rtol=1e-5, atol=1e-4)
