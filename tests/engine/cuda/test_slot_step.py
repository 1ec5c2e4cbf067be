"""A step of a batch's slots as kernels against the network's own attention: what each slot holds, and no more."""

import pytest
import torch

from tests.triton_here import DEVICE, apart  # isort: skip  (first: it prepares Triton)
from mllama_cli.engine.batch.cache import SlotCache
from mllama_cli.engine.batch.slot_step import SlotStep
from mllama_cli.engine.padded_step import StepShape, padded_step
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from tests.checkpoints import config_dict, random_network

SLOTS, HELD = 4, [(90, 40), (3, 0), (17, 7)]
"""Of three busy slots of four: positions, and vision tokens that they see."""


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
    return cache


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
    before = [tensor.clone() for tensor in (*cache.keys, *cache.values)]
    shape = StepShape.of(cache)
    assert (shape.rows, shape.sees) == (4, any(seen for _, seen in held))
    ids = torch.tensor([[5], [6], [7], [0]], device=DEVICE)
    expected = padded_step(network, cache, ids, shape)
    written = [tensor.clone() for tensor in (*cache.keys, *cache.values)]
    step = SlotStep(network, cache, shape)
    for _ in range(2):  # twice: nothing of the first is left in the way
        for tensor, old in zip((*cache.keys, *cache.values), before, strict=True):
            tensor.copy_(old)
        logits = step.run(ids)
        assert apart(logits[:3], expected[:3]) < 1e-5
        for ours, theirs in zip((*cache.keys, *cache.values), written, strict=True):
            assert apart(ours, theirs) < 1e-6
