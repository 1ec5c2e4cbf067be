"""The self KV cache grows on demand, losing as little as possible when that fails, and copies conversations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mllama_cli.core.config import MllamaConfig
from mllama_cli.model.cache import GROWTH, KVCache, attend_new_rows
from tests.checkpoints import config_dict

FILLED = 300


@pytest.fixture
def cache() -> KVCache:
    config = MllamaConfig.from_dict(config_dict({"num_hidden_layers": 4, "cross_attention_layers": [1]})).text_config
    cache = KVCache(config)
    cache.reserve(FILLED)
    for number, tensor in enumerate((*cache.keys, *cache.values)):
        tensor.copy_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(number)))
    cache.lengths = [FILLED]
    return cache


def remembered(cache: KVCache) -> list[Tensor]:
    return [tensor[:, :, : cache.lengths[0]].clone() for tensor in (*cache.keys, *cache.values)]


def is_whole(cache: KVCache) -> bool:
    return {tensor.shape[2] for tensor in (*cache.keys, *cache.values)} == {cache.capacity}


def failing_at(calls: Callable[[int], bool], error: type[BaseException]) -> Callable[..., Tensor]:
    allocate, count = Tensor.new_zeros, 0

    def new_zeros(tensor: Tensor, *arguments: Any) -> Tensor:
        nonlocal count
        count += 1
        if calls(count):
            raise error
        return allocate(tensor, *arguments)

    return new_zeros


def test_growing_keeps_what_is_there(cache: KVCache) -> None:
    before = remembered(cache)
    cache.reserve(cache.capacity + 1)
    assert is_whole(cache)
    torch.testing.assert_close(remembered(cache), before, rtol=0, atol=0)


def test_without_memory_for_slack_it_grows_by_what_is_needed(cache: KVCache, monkeypatch: pytest.MonkeyPatch) -> None:
    before, needed = remembered(cache), cache.capacity + 1
    monkeypatch.setattr(Tensor, "new_zeros", failing_at(lambda call: call == 3, torch.OutOfMemoryError))
    cache.reserve(needed)
    assert needed <= cache.capacity < needed + GROWTH
    assert is_whole(cache)
    torch.testing.assert_close(remembered(cache), before, rtol=0, atol=0)


def test_without_any_memory_it_is_empty_and_can_be_used_again(cache: KVCache, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = cache.capacity + 1
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "new_zeros", failing_at(lambda call: call >= 3, torch.OutOfMemoryError))
        with pytest.raises(torch.OutOfMemoryError):
            cache.reserve(needed)
    assert cache.lengths == [0]
    assert sum(t.nbytes for t in (*cache.keys, *cache.values)) == 0
    cache.reserve(5)
    assert cache.capacity >= 5
    assert is_whole(cache)


def test_an_interruption_while_it_grows_loses_nothing(cache: KVCache, monkeypatch: pytest.MonkeyPatch) -> None:
    before, needed = remembered(cache), cache.capacity + 1
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "new_zeros", failing_at(lambda call: call == 3, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cache.reserve(needed)
    cache.reserve(FILLED + 1)
    assert cache.capacity > FILLED
    assert is_whole(cache)
    torch.testing.assert_close(remembered(cache), before, rtol=0, atol=0)


def other_cache(cache: KVCache, batch: int, length: int) -> KVCache:
    config = MllamaConfig.from_dict(config_dict({"num_hidden_layers": 4, "cross_attention_layers": [1]})).text_config
    other = KVCache(config, batch)
    other.reserve(length)
    return other


@pytest.mark.parametrize("grown", [(), ("source",), ("target",), ("source", "target")], ids="-".join)
def test_a_copied_row_is_the_beginning_of_the_other_conversation(cache: KVCache, grown: tuple[str, ...]) -> None:
    """Whether each cache is one allocation or, after it has grown, one for each layer."""
    if "source" in grown:
        cache.reserve(cache.capacity + 1)
    target = other_cache(cache, 3, 120)
    if "target" in grown:
        target.lengths = [1, 0, 0]
        target.reserve(target.capacity + 1)
        target.lengths = [0, 0, 0]
    before = [tensor.clone() for tensor in (*target.keys, *target.values)]
    target.copy_from(cache, 0, 100, to_row=1)
    assert target.lengths == [0, 100, 0]
    for ours, theirs, old in zip((*target.keys, *target.values), (*cache.keys, *cache.values), before, strict=True):
        assert torch.equal(ours[1, :, :100], theirs[0, :, :100])
        assert torch.equal(ours[1, :, 100:], old[1, :, 100:])
        assert torch.equal(ours[[0, 2]], old[[0, 2]])


def test_a_row_copied_back_is_unchanged(cache: KVCache) -> None:
    before = remembered(cache)
    batch, again = other_cache(cache, 2, FILLED), other_cache(cache, 1, FILLED)
    batch.copy_from(cache, 0, FILLED, to_row=1)
    again.copy_from(batch, 1, FILLED)
    torch.testing.assert_close(remembered(again), before, rtol=0, atol=0)


@pytest.mark.parametrize("length", [1, 7])
def test_new_rows_are_stored_and_attend_to_all_before_them(cache: KVCache, length: int) -> None:
    heads, dim = cache.keys[0].shape[1], cache.keys[0].shape[3]
    q, k, v = torch.randn(1, 2 * heads, length, dim), *torch.randn(2, 1, heads, length, dim)
    positions = torch.arange(FILLED, FILLED + length)[None]
    all_k = torch.cat((cache.keys[1][:, :, :FILLED], k), dim=2)
    all_v = torch.cat((cache.values[1][:, :, :FILLED], v), dim=2)
    cache.reserve(FILLED + length)
    mask = (torch.arange(FILLED + length) <= positions[0, :, None])[None, None] if length > 1 else None
    out = cache.attend(1, q, k, v, positions, mask)
    torch.testing.assert_close(out, attend_new_rows(q, all_k, all_v, mask))
    assert torch.equal(cache.keys[1][:, :, : FILLED + length], all_k)
    assert torch.equal(cache.values[1][:, :, : FILLED + length], all_v)
    assert cache.lengths == [FILLED], "only the caller knows which rows count"


def test_conversations_of_different_lengths_store_their_rows_where_each_ends(cache: KVCache) -> None:
    batch = other_cache(cache, 2, FILLED + 4)
    batch.copy_from(cache, 0, FILLED, to_row=0)
    batch.copy_from(cache, 0, 90, to_row=1)
    heads, dim = batch.keys[0].shape[1], batch.keys[0].shape[3]
    k, v = torch.randn(2, 2, heads, 3, dim)
    starts = torch.tensor([[FILLED], [90]])
    batch.write(0, k, v, starts + torch.arange(3))
    for row, start in enumerate((FILLED, 90)):
        assert torch.equal(batch.keys[0][row, :, start : start + 3], k[row])
        assert torch.equal(batch.values[0][row, :, start : start + 3], v[row])
        assert torch.equal(batch.keys[0][row, :, :start], cache.keys[0][0, :, :start])
