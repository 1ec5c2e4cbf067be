"""What LoRA adapters add to products of packed matrices, and the sums that kernels before them make."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.triton_here import DEVICE, aligned, apart  # isort: skip  (first: it prepares Triton)
from mllama_cli.kernels.cuda.attention_api import Addresses, Scratch, decode_attention, following_by_heads
from mllama_cli.kernels.cuda.gemv_api import gemv
from mllama_cli.kernels.cuda.gemv_tiles import GemvTile
from mllama_cli.kernels.cuda.layout import interleave
from mllama_cli.kernels.cuda.low_rank import Change, Following, Sums, add_product, by_blocks
from mllama_cli.kernels.ops import rms_norm
from mllama_cli.kernels.packed import PackedWeight, dequantize, pack
from mllama_cli.model.layers import grouped_attention

EPS = 1e-5


def packed(rows: int, inputs: int) -> PackedWeight:
    q = torch.randint(-8, 8, (rows, inputs), device=DEVICE)
    scale = (torch.rand(rows, inputs // 32, device=DEVICE) + 0.1) / 8 / inputs**0.5
    return PackedWeight(pack(q, 4), scale, (rows, inputs), 4)


def sums_of(a: Tensor, batch: int) -> Sums:
    return Sums.of(a, batch, torch.zeros(Sums.size(batch, a.shape[0]), dtype=torch.int64, device=DEVICE))


def read(sums: Sums) -> Tensor:
    return sums.copies.sum(dim=1).float() * sums.unit


def adapter(ranks: int, inputs: int, rows: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    """Return A of all matrices, and B of each."""
    a = torch.randn(ranks * len(rows), inputs, device=DEVICE) / inputs**0.5
    return a, [torch.randn(n, ranks, device=DEVICE) / ranks**0.5 for n in rows]


TILES = {
    "tiles": GemvTile(4, 32, 1),
    "large tiles": GemvTile(16, 32, 1),
    "several steps": GemvTile(8, 16, 1),
    "persistent": GemvTile(8, 32, 1, programs=2),
    "in chunks": GemvTile(8, 16, 2, programs=2, chunks=2),
}


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
@pytest.mark.parametrize("ranks", [3, 16, 40])
@pytest.mark.parametrize(("rows", "batch"), [((32, 16, 9), 2), ((37,), 1)], ids=["three", "one"])
def test_a_product_with_adapters_makes_the_sums_of_the_next(
    rows: tuple[int, ...], batch: int, ranks: int, tile: GemvTile
) -> None:
    if not tile.takes(ranks):
        pytest.skip("more ranks than a persistent program has registers for")
    torch.manual_seed(0)
    inputs, size = 1024, sum(rows)
    x, norm = torch.randn(batch, inputs, device=DEVICE), torch.rand(inputs, device=DEVICE)
    weights = [packed(n, inputs) for n in rows]
    residual, factor = torch.randn(batch, size, device=DEVICE), torch.tensor([0.3], device=DEVICE)
    a, b = adapter(ranks, inputs, rows)
    sums = sums_of(a * norm, batch)
    add_product(interleave(x, 8), interleave(a * norm, 8), sums)
    assert apart(read(sums), F.linear(x, a * norm)) < 1e-5
    next_a = torch.randn(min(ranks, 5), size, device=DEVICE)
    following = Following(by_blocks(next_a.T, tile.rows), sums_of(next_a, batch)) if len(rows) == 1 else None
    out = torch.full((batch, size), torch.nan, device=DEVICE)
    gemv(
        interleave(x, 8), weights, out, norm=interleave(norm, 8), eps=EPS, residual=residual, factor=factor,
        in_interleave=8, tile=tile, following=following,
        change=Change(torch.cat([by_blocks(each, tile.rows) for each in b]), sums),
    )  # fmt: skip
    h = rms_norm(x, norm, EPS)
    changes = [F.linear(F.linear(h, one), two) for one, two in zip(a.split(ranks), b, strict=True)]
    plain = torch.cat([F.linear(h, dequantize(w)) for w in weights], dim=1)
    assert apart(out, residual + 0.3 * (plain + torch.cat(changes, dim=1))) < 2e-4
    if following is not None:
        assert apart(read(following.sums), F.linear(out, next_a)) < 1e-5


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
@pytest.mark.parametrize("outputs", [64, 37])
def test_a_gated_product_with_adapters(outputs: int, tile: GemvTile) -> None:
    torch.manual_seed(1)
    inputs, ranks = 1024, 16
    x, weights = torch.randn(1, inputs, device=DEVICE), [packed(outputs, inputs) for _ in range(2)]
    a, b = adapter(ranks, inputs, (outputs, outputs))
    sums = sums_of(a, 1)
    add_product(x, a, sums)
    next_a = torch.randn(5, outputs, device=DEVICE)
    following = Following(by_blocks(next_a.T, tile.rows), sums_of(next_a, 1))
    out = torch.full((1, outputs), torch.nan, device=DEVICE)
    gemv(
        interleave(x, 8), weights, out, swiglu=True, in_interleave=8, tile=tile, following=following,
        change=Change(torch.cat([by_blocks(each, tile.rows) for each in b]), sums),
    )  # fmt: skip
    gate, up = (F.linear(x, dequantize(w) + two @ one) for w, one, two in zip(weights, a.split(ranks), b, strict=True))
    assert apart(out, F.silu(gate) * up) < 4e-4
    assert apart(read(following.sums), F.linear(out, next_a)) < 1e-5


@pytest.mark.parametrize("ranges", [[(0, 700)], [(5, 300), (1, 2)]])
@pytest.mark.parametrize(("heads", "kv_heads", "ranks"), [(8, 2, 16), (6, 2, 3), (4, 2, 37)])
def test_attention_makes_the_sums_of_the_next(
    heads: int, kv_heads: int, ranks: int, ranges: list[tuple[int, int]]
) -> None:
    torch.manual_seed(2)
    dim, capacity, splits, batch = 32, 768, 4, len(ranges)
    addresses = Addresses(batch, 1, torch.float32, DEVICE)
    keys, values = (
        aligned(torch.randn(batch, kv_heads, capacity, dim, device=DEVICE), addresses.base) for _ in range(2)
    )
    for row in range(batch):
        addresses.set(row, [keys[row : row + 1]], [values[row : row + 1]])
    query, norm = torch.randn(batch, heads * dim, device=DEVICE), torch.randn(dim, device=DEVICE)
    a = torch.randn(ranks, heads * dim, device=DEVICE)
    scratch = Scratch(batch, heads, dim, splits, DEVICE)
    following = following_by_heads(a, sums_of(a, batch), kv_heads, dim)
    out = torch.full_like(query, torch.nan)
    decode_attention(
        query, out, scratch, addresses, torch.tensor(ranges, dtype=torch.int32, device=DEVICE),
        cache_index=0, kv_heads=kv_heads, dim=dim, norm=norm, eps=EPS, following=following,
    )  # fmt: skip
    q = rms_norm(query.unflatten(1, (heads, 1, dim)), norm, EPS)
    for row, (start, end) in enumerate(ranges):
        one = slice(row, row + 1)
        exact = grouped_attention(q[one], keys[one, :, start:end], values[one, :, start:end])[0, 0]
        assert apart(out[row], exact) < 1e-5
        assert apart(read(following.sums)[row], F.linear(exact, a)) < 1e-5


def test_sums_do_not_depend_on_the_order_in_which_programs_add() -> None:
    torch.manual_seed(3)
    x, a = torch.randn(1, 512, device=DEVICE) * 1e3, torch.randn(16, 512, device=DEVICE)
    blocks = torch.arange(512, device=DEVICE).view(8, 64)
    results = []
    for _ in range(4):
        order = blocks[torch.randperm(8, device=DEVICE)].flatten()
        sums = sums_of(a, 1)
        add_product(x[:, order], a[:, order].contiguous(), sums)
        results.append(read(sums))
    assert all(torch.equal(result, results[0]) for result in results)
