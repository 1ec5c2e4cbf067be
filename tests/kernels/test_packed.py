"""Test the reference product of a packed matrix, dequantized some rows at a time."""

import pytest
import torch
import torch.nn.functional as F

from mllama_cli.kernels import packed as reference
from mllama_cli.kernels.packed import PackedWeight, dequantize, pack


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 23])
def test_a_packed_product_is_made_some_rows_at_a_time(bits: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (rows, 64))
    weight = PackedWeight(pack(q, bits), torch.rand(rows, 2) + 0.1, (rows, 64), bits)
    x = torch.randn(2, 3, 64)
    largest = []

    def watched(part: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
        largest.append(part.shape[0])
        return dequantize(part, dtype)

    monkeypatch.setattr(reference, "UNPACKED_BYTES", 4 * 64 * 8)
    monkeypatch.setattr(reference, "dequantize", watched)
    exact = F.linear(x, dequantize(weight))
    assert (reference.quantized_linear(x, weight) - exact).norm() < 1e-6 * exact.norm()
    assert max(largest) <= 8
    assert sum(largest) == rows
