"""Embedding lookup by our kernels, on a GPU from pinned host memory."""

import pytest
import torch

from tests.triton_here import DEVICE  # isort: skip  (first: it prepares Triton)
from mllama_cli.kernels.cuda.embed_argmax import embed
from mllama_cli.kernels.cuda.host_embedding import gather


def table(rows: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    made = torch.randn(rows, size).to(dtype)
    return made.pin_memory() if DEVICE.type == "cuda" else made


@pytest.mark.parametrize("size", [64, 1000, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_are_those_of_the_table(size: int, dtype: torch.dtype) -> None:
    source = table(30, size, dtype)
    ids = torch.tensor([[3, 29, 0], [7, 7, 1]])
    assert torch.equal(gather(ids.to(DEVICE), source).cpu(), source[ids])
    assert torch.equal(gather(ids.t().to(DEVICE), source).cpu(), source[ids.t()]), "ids that lie otherwise"
    assert gather(ids[:, :0].to(DEVICE), source).shape == (2, 0, size)


def test_no_row_before_the_first_is_read() -> None:
    source = table(4, 64, torch.float32)
    ids = torch.tensor([-1, 2], device=DEVICE)
    assert torch.equal(gather(ids, source).cpu(), source[[0, 2]])
    tokens = ids.int()
    out, turned = torch.empty(2, 64, device=DEVICE), torch.empty(2, 2, 8, device=DEVICE)
    embed(tokens, torch.zeros_like(tokens), source, torch.ones(8, device=DEVICE), out, turned)
    assert torch.equal(out.cpu(), source[[0, 2]])
