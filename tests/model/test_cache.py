"""The self KV cache grows on demand; failures while it grows lose as little as possible."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mllama_cli.core.config import MllamaConfig
from mllama_cli.model.cache import GROWTH, KVCache
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
