"""A few rows times a packed matrix: every layout, odd shapes, and splits of the row length."""

import pytest
import torch

from tests.triton_here import DEVICE, apart  # isort: skip  (first: it prepares Triton)
from mllama_cli.kernels.codes import Code
from mllama_cli.kernels.cuda import dequantize as many_rows
from mllama_cli.kernels.cuda.packed_matmul import MatmulTile, packed_matmul, supports
from mllama_cli.kernels.packed import PackedWeight, dequantize, pack

NOISE = 1e-3
"""The matrix is rounded to float16."""


def matrix(rows: int, inputs: int, bits: int, group: int) -> PackedWeight:
    q = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (rows, inputs))
    scale = (torch.rand(rows, inputs // group) + 0.1) / 2**bits / inputs**0.5
    return PackedWeight(pack(q, bits).to(DEVICE), scale.to(DEVICE), (rows, inputs), bits)


@pytest.mark.parametrize(
    ("bits", "inputs", "group", "rows", "count", "tile"),
    [
        (4, 256, 32, 48, 3, MatmulTile(32, 16, 1)),  # several groups in a step
        (4, 512, 128, 70, 17, MatmulTile(64, 16, 2)),  # one group a step, rows that end in a tile
        (4, 384, 384, 16, 2, MatmulTile(16, 32, 4)),  # one group in all, parts beyond the end
        (8, 384, 128, 40, 65, MatmulTile(32, 32, 2)),  # more rows than one program takes
        (8, 96, 24, 16, 1, None),
        (4, 1024, 128, 130, 40, None),
    ],
)
def test_the_product_is_that_of_the_unpacked_matrix(
    bits: int, inputs: int, group: int, rows: int, count: int, tile: MatmulTile | None
) -> None:
    torch.manual_seed(bits * inputs + count)
    weight = matrix(rows, inputs, bits, group)
    x = torch.randn(count, inputs, device=DEVICE).half()
    assert supports(x, weight)
    exact = x.double() @ dequantize(weight, torch.float32).double().T
    assert apart(packed_matmul(x, weight, tile), exact) < NOISE


@pytest.mark.parametrize(("code", "bits"), [("nf4", 4), ("fp4", 4), ("fp8", 8)])
@pytest.mark.parametrize("count", [1, 8, 40])
def test_tables_and_floats_of_8_bits(code: Code, bits: int, count: int) -> None:
    torch.manual_seed(count)
    numbers = torch.randint(0, 256, (70, 512 * bits // 8), dtype=torch.uint8)
    if code == "fp8":
        numbers = torch.randn(70, 512).to(torch.float8_e4m3fn).view(torch.uint8)
    scale = (torch.rand(70, 8) + 0.1) / 512**0.5
    weight = PackedWeight(numbers.view(torch.int32).to(DEVICE), scale.to(DEVICE), (70, 512), bits, code)
    x = torch.randn(count, 512, device=DEVICE).half()
    assert supports(x, weight)
    exact = x.double() @ dequantize(weight, torch.float32).double().T
    assert apart(packed_matmul(x, weight), exact) < NOISE


@pytest.mark.parametrize("count", [1, many_rows.MAX_PACKED_MATMUL_ROWS, many_rows.MAX_PACKED_MATMUL_ROWS + 1])
def test_any_number_of_rows_gives_the_same_product(count: int) -> None:
    torch.manual_seed(count)
    weight = matrix(24, 64, 8, 32)
    x = torch.randn(1, count, 64, device=DEVICE).half()
    exact = x.double() @ dequantize(weight, torch.float32).double().T
    result = many_rows.quantized_linear(x, weight)
    assert result.shape == (1, count, 24)
    assert apart(result, exact) < NOISE


def test_what_it_cannot_take_is_left_to_others() -> None:
    assert not supports(torch.zeros(1, 64), matrix(8, 64, 4, 32)), "float32 activations"
    assert not supports(torch.zeros(1, 36).half(), matrix(8, 36, 8, 6)), "a word of two groups"
