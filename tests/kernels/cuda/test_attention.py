"""Decode attention over caches, and the embedding and argmax of a decode step."""

import pytest
import torch
from torch import Tensor

from tests.triton_here import DEVICE, aligned, apart  # isort: skip  (first: it prepares Triton)
from mllama_cli.core.config import RopeScaling
from mllama_cli.kernels.cuda.addresses import Addresses
from mllama_cli.kernels.cuda.attention_api import Scratch, decode_attention
from mllama_cli.kernels.cuda.embed_argmax import Argmax, best_allowed, embed
from mllama_cli.kernels.ops import apply_rope, best_ids, masked, rms_norm
from mllama_cli.model.image_kv import Float8KV
from mllama_cli.model.layers import grouped_attention
from mllama_cli.model.rope import inverse_frequencies, rotation

DIM, CAPACITY, SPLITS = 32, 768, 4
FREQUENCIES = inverse_frequencies(DIM, 5e5, RopeScaling()).to(DEVICE)


def caches(batch: int, kv_heads: int, addresses: Addresses) -> tuple[list[Tensor], list[Tensor]]:
    shape = (batch, kv_heads, CAPACITY, DIM)
    keys, values = ([aligned(torch.randn(shape, device=DEVICE), addresses.base) for _ in range(2)] for _ in range(2))
    for row in range(batch):
        addresses.set(row, [k[row : row + 1] for k in keys], [v[row : row + 1] for v in values])
    return keys, values


@pytest.mark.parametrize(
    ("heads", "kv_heads", "positions"), [(6, 3, [5]), (4, 2, [0, 70, 130]), (8, 1, [700]), (12, 4, [31, 32])]
)
def test_self_attention_over_old_keys_and_the_new_one(heads: int, kv_heads: int, positions: list[int]) -> None:
    torch.manual_seed(0)
    batch = len(positions)
    addresses = Addresses(batch, 2, torch.float32, DEVICE)
    keys, values = caches(batch, kv_heads, addresses)
    before = keys[1].clone(), values[1].clone()
    position_tensor = torch.tensor(positions, dtype=torch.int32, device=DEVICE)
    tokens = torch.full((batch,), 3, dtype=torch.int32, device=DEVICE)
    table = torch.randn(10, 64, device=DEVICE)
    x, turned = torch.empty(batch, 64, device=DEVICE), torch.empty(batch, 2, DIM // 2, device=DEVICE)
    embed(tokens, position_tensor, table, FREQUENCIES, x, turned)
    assert torch.equal(x, table[3].expand(batch, -1))

    projected = torch.randn(batch, (heads + 2 * kv_heads) * DIM, device=DEVICE)
    out = torch.full((batch, heads * DIM), torch.nan, device=DEVICE)
    scratch = Scratch(batch, heads, DIM, SPLITS, DEVICE)
    for _ in range(2):  # twice, as the splits' counters must be reset
        query, key, value = projected.split([heads * DIM, kv_heads * DIM, kv_heads * DIM], dim=1)
        decode_attention(
            query, out, scratch, addresses, position_tensor,
            cache_index=1, kv_heads=kv_heads, dim=DIM, key=key, value=value, rotation=turned,
        )  # fmt: skip
    cos, sin = rotation(position_tensor[:, None], FREQUENCIES)
    q, k, v = projected.unflatten(1, (-1, 1, DIM)).split([heads, kv_heads, kv_heads], dim=1)
    q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
    for row, position in enumerate(positions):
        one = slice(row, row + 1)
        all_keys = torch.cat((before[0][one, :, :position], k[one]), dim=2)
        all_values = torch.cat((before[1][one, :, :position], v[one]), dim=2)
        assert apart(out[row], grouped_attention(q[one], all_keys, all_values)[0, 0]) < 1e-5
        assert apart(keys[1][row, :, position], k[row, :, 0]) < 1e-5
        assert torch.equal(values[1][row, :, position], v[row, :, 0])
        assert torch.equal(keys[1][row, :, position + 1 :], before[0][row, :, position + 1 :])


@pytest.mark.parametrize(("ranges", "programs"), [([(0, 700)], 2), ([(3, 697)], 7), ([(5, 300), (1, 2)], 4)])
def test_cross_attention_over_a_range_of_vision_tokens(
    ranges: list[tuple[int, int]], programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr("mllama_cli.kernels.cuda.attention_api.DEEP_BYTES", 0)
    monkeypatch.setattr("mllama_cli.kernels.cuda.attention_api.DEEP_PROGRAMS", programs)
    heads, kv_heads, batch = 8, 2, len(ranges)
    addresses = Addresses(batch, 2, torch.float32, DEVICE)
    keys, values = caches(batch, kv_heads, addresses)
    query, norm = torch.randn(batch, heads * DIM, device=DEVICE), torch.randn(DIM, device=DEVICE)
    out = torch.full_like(query, torch.nan)
    limits = torch.tensor(ranges, dtype=torch.int32, device=DEVICE)
    decode_attention(
        query, out, Scratch(batch, heads, DIM, SPLITS, DEVICE), addresses, limits,
        cache_index=0, kv_heads=kv_heads, dim=DIM, norm=norm, eps=1e-5,
    )  # fmt: skip
    q = rms_norm(query.unflatten(1, (heads, 1, DIM)), norm, 1e-5)
    for row, (start, end) in enumerate(ranges):
        one = slice(row, row + 1)
        exact = grouped_attention(q[one], keys[0][one, :, start:end], values[0][one, :, start:end])
        assert apart(out[row], exact[0, 0]) < 1e-5


@pytest.mark.parametrize(("heads", "tokens"), [(8, 8), (8, 4), (8, 2), (6, 8)])
@pytest.mark.parametrize("splits", [1, 4])
def test_tokens_of_one_conversation_read_its_vision_tokens_together(heads: int, tokens: int, splits: int) -> None:
    torch.manual_seed(4)
    kv_heads, batch = 2, 8
    addresses = Addresses(batch, 2, torch.float32, DEVICE)
    keys, values = caches(batch // tokens, kv_heads, addresses)
    for row in range(batch):
        own = slice(row // tokens, row // tokens + 1)
        addresses.set(row, [k[own] for k in keys], [v[own] for v in values])
    query, norm = torch.randn(batch, heads * DIM, device=DEVICE), torch.randn(DIM, device=DEVICE)
    out = torch.full_like(query, torch.nan)
    ranges = [(0, 1), (0, 700), (0, 700), (300, 310), (5, 6), (2, 640), (600, 768), (0, 64)]
    limits = torch.tensor(ranges, dtype=torch.int32, device=DEVICE)
    scratch = Scratch(batch, heads, DIM, splits, DEVICE)
    for _ in range(2):  # twice, as the splits' counters must be reset
        decode_attention(
            query, out, scratch, addresses, limits,
            cache_index=1, kv_heads=kv_heads, dim=DIM, tokens=tokens, norm=norm, eps=1e-5,
        )  # fmt: skip
    q = rms_norm(query.unflatten(1, (heads, 1, DIM)), norm, 1e-5)
    for row, (start, end) in enumerate(ranges):
        one, own = slice(row, row + 1), slice(row // tokens, row // tokens + 1)
        exact = grouped_attention(q[one], keys[1][own, :, start:end], values[1][own, :, start:end])
        assert apart(out[row], exact[0, 0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 2])
def test_cross_attention_reads_float8(dtype: torch.dtype, tokens: int) -> None:
    torch.manual_seed(5)
    heads, kv_heads, batch, ranges = 8, 2, 2, [(0, 700), (3, 40)]
    addresses = Addresses(batch, 2, torch.uint8, DEVICE, kv_heads=kv_heads)
    images, kept = [], []
    for row in range(batch):
        size = torch.tensor([0.1, 9.0], device=DEVICE)[:, None, None]
        whole = [
            tuple((size * torch.randn(1, kv_heads, CAPACITY, DIM, device=DEVICE)).to(dtype) for _ in range(2))
            for _ in range(2)
        ]
        image = images[0] if row and tokens > 1 else Float8KV.of(whole)
        images.append(image)
        aligned_codes = aligned(image.codes, addresses.base)
        addresses.set(row, aligned_codes[:, 0].unbind(), aligned_codes[:, 1].unbind(), image.scales[:, :, 0])
        kept.append(aligned_codes)
    query, norm = torch.randn(batch, heads * DIM, device=DEVICE).to(dtype), torch.randn(DIM, device=DEVICE).to(dtype)
    out = torch.full_like(query, torch.nan)
    decode_attention(
        query, out, Scratch(batch, heads, DIM, SPLITS, DEVICE), addresses,
        torch.tensor(ranges, dtype=torch.int32, device=DEVICE),
        cache_index=1, kv_heads=kv_heads, dim=DIM, tokens=tokens, norm=norm, eps=1e-5,
    )  # fmt: skip
    q = rms_norm(query.unflatten(1, (heads, 1, DIM)), norm, 1e-5)
    for row, (start, end) in enumerate(ranges):
        keys, values = images[row][1]
        exact = grouped_attention(q[row : row + 1], keys[:, :, start:end], values[:, :, start:end])
        assert apart(out[row], exact[0, 0]) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_the_best_token_the_first_of_equals_and_none_for_nan() -> None:
    torch.manual_seed(2)
    size = 3001
    logits = torch.randn(3, size, device=DEVICE)
    logits[0, [2900, 17]] = 9.0
    logits[2, 1500] = torch.nan
    tokens = torch.zeros(3, dtype=torch.int32, device=DEVICE)
    positions = torch.tensor([3, 4, 5], dtype=torch.int32, device=DEVICE)
    Argmax(3, size, DEVICE)(logits, tokens, positions)
    assert tokens.tolist() == [17, int(logits[1].argmax()), -1]
    assert positions.tolist() == [4, 5, 6]


def test_the_best_of_the_tokens_that_masks_allow() -> None:
    torch.manual_seed(3)
    size = 3001
    logits = torch.randn(6, size, device=DEVICE).bfloat16()
    words = torch.randint(-(2**31), 2**31, (3, (size + 31) // 32), dtype=torch.int32, device=DEVICE)
    words[1] = 0
    words[1, 93] = -(1 << 31)  # 3007, which has no logit, and then 2999 too
    words[1, 93] |= 1 << 23
    words[2] = 0
    logits[2, [5, 6]] = 9.0
    logits[3, 17], logits[4, 2999], logits[5, 40] = torch.nan, torch.inf, torch.nan
    rows = torch.tensor([0, 1, -1, 1, 1, 2], device=DEVICE)
    exact = best_ids(masked(logits.float(), torch.where(rows[:, None] < 0, -1, words[rows.clamp(min=0)])))
    assert exact.tolist()[1:] == [2999, 5, 2999, -1, -1]
    assert best_allowed(logits, words, rows).tolist() == exact.tolist()
    tokens = torch.zeros(6, dtype=torch.int32, device=DEVICE)
    positions = torch.arange(6, dtype=torch.int32, device=DEVICE)
    Argmax(6, size, DEVICE)(logits, tokens, positions, (words, rows))
    assert tokens.tolist() == exact.tolist()
    assert positions.tolist() == [1, 2, 3, 4, 5, 6]
