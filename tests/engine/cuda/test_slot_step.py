"""A step of a batch's slots as kernels against the network's own attention: what each slot holds, and no more."""

import pytest
import torch
from torch import Tensor

from tests.triton_here import DEVICE, apart  # isort: skip  (first: it prepares Triton)

from mllama_cli.engine.batch.cache import SlotCache
from mllama_cli.engine.batch.slot_graphs import StepShape
from mllama_cli.engine.batch.slot_step import SlotStep
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from tests.checkpoints import config_dict, random_network

SLOTS, HELD = 4, [(90, 40), (3, 0), (9, 12), (17, 7)]
"""Positions of each slot, and vision tokens that it sees. The third is released, so that the last one moves into it."""


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllama_cli.kernels.cuda.attention.TARGET_PROGRAMS", 16)  # the interpreter runs them one by one


def filled(network: MllamaForConditionalGeneration, held: list[tuple[int, int]]) -> SlotCache:
    config = network.language_model.config
    cache = SlotCache(config, SLOTS, dtype=torch.float32, device=DEVICE)
    cache.reserve(100)
    for tensor in (*cache.keys, *cache.values):
        tensor.copy_(torch.randn(tensor.shape))
    for slot, (length, seen) in enumerate(held):
        layers = [
            tuple(torch.randn(1, config.num_key_value_heads, 40, config.head_dim).to(DEVICE) for _ in range(2))
            for _ in cache.cross_keys
        ]
        cache.put(slot, length, layers, 0, seen)  # type: ignore[arg-type]
    cache.release(2)
    return cache


def eager_step(network: MllamaForConditionalGeneration, cache: SlotCache, ids: Tensor) -> Tensor:
    """Logits of the busy slots by torch's operations, as engine/batch/slots.py has them without our kernels."""
    model, positions = network.language_model, cache.lengths[: cache.busy, None]
    mask = (torch.arange(cache.max_len + 1, device=DEVICE) <= positions)[:, None, None]
    hidden = model.run(ids, model.context(positions, cache, mask), *cache.seen())
    logits: Tensor = network.lm_head(hidden[:, 0])
    return logits


@pytest.mark.parametrize("held", [HELD, [(length, 0) for length, _ in HELD]], ids=["pictures", "text"])
@torch.inference_mode()
def test_logits_and_caches_are_those_of_the_network(held: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    text = {"num_hidden_layers": 3, "cross_attention_layers": [1], "intermediate_size": 64}
    text |= {"hidden_size": 128, "num_attention_heads": 4}  # heads of 32: the least that a GPU's matrix units take
    network = random_network(config_dict(text=text), seed=5)
    assert isinstance(network, MllamaForConditionalGeneration)
    network = network.to(DEVICE)
    cache = filled(network, held)
    shape = StepShape.of(cache)
    assert shape == StepShape(4, any(seen for _, seen in held))
    step = SlotStep(network, cache, shape.rows, with_images=shape.with_images)
    stored = (*cache.keys, *cache.values)
    for number in (5, 8):
        ids = torch.tensor([[number], [number + 1], [number + 2], [0]], device=DEVICE)
        before = [tensor.clone() for tensor in stored]
        expected = eager_step(network, cache, ids[:3])
        written = [tensor.clone() for tensor in stored]
        for tensor, old in zip(stored, before, strict=True):
            tensor.copy_(old)
        logits = step.run(ids)
        assert apart(logits[:3], expected) < 1e-5
        for ours, theirs in zip(stored, written, strict=True):
            assert apart(ours[:3], theirs[:3]) < 1e-6, "the slots in use hold the new row and nothing else"
        cache.advance()
