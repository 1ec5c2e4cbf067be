"""A decode step as kernels against the network itself, and tokens chosen on the device against engine/sampling.py."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.triton_here import DEVICE, aligned, apart, few_programs  # isort: skip  (first: it prepares Triton)
from mllama_cli.benchmark.random_network import random_matrix
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda import operands
from mllama_cli.engine.cuda.sampler import Choice
from mllama_cli.engine.cuda.step import DecodeStep, State
from mllama_cli.engine.forward import forward
from mllama_cli.engine.sampling import filtered_probabilities
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.layers import set_exact
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.visibility import image_spans, segments
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.quantization.schemes import Scheme
from tests.checkpoints import config_dict, random_network


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("mllama_cli.kernels.cuda.attention.TARGET_PROGRAMS", 8)  # the interpreter runs them one by one
    few_programs(monkeypatch)
    with torch.inference_mode():
        yield


def network(packed: dict[str, int] | None = None) -> MllamaForConditionalGeneration:
    """A small one; ``packed`` gives the bits of the linear layers whose names end so."""
    text = {"num_hidden_layers": 3, "cross_attention_layers": [1], "intermediate_size": 64}
    text |= {"hidden_size": 128, "num_attention_heads": 4}  # heads of 32: the least that a GPU's matrix units take
    made = random_network(config_dict(text=text), seed=5)
    assert isinstance(made, MllamaForConditionalGeneration)
    for name, module in list(made.named_modules()):
        bits = next((bits for end, bits in (packed or {}).items() if name.endswith(end)), None)
        if bits is not None and isinstance(module, torch.nn.Linear) and "vision_model" not in name:
            owner, _, attribute = name.rpartition(".")
            new = QuantizedLinear(module.in_features, module.out_features, Scheme(bits, 32))
            new.fill(random_matrix(new, torch.float32, DEVICE))
            setattr(made.get_submodule(owner), attribute, new)
    set_exact(made, True)  # the network is the reference: on a CPU too it may not round activations
    return made.to(DEVICE)


def align(tensors: list[Tensor], base: Tensor) -> list[Tensor]:
    return [aligned(tensor, base) for tensor in tensors]


@pytest.mark.parametrize("sees", [False, True])
@pytest.mark.parametrize(
    "packed",
    [
        None,
        pytest.param({"proj": 8}, marks=pytest.mark.slow),
        pytest.param(
            {"down_proj": 8, "lm_head": 8, "mlp.up_proj": 4, "mlp.gate_proj": 4, "attn.o_proj": 4},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["plain", "8 bits", "mixed"],
)
def test_steps_give_the_networks_logits(sees: bool, packed: dict[str, int] | None) -> None:
    net = network(packed)
    image_token = net.config.image_token_index
    prompt = [image_token] * sees + list(range(1, 20))
    spans = image_spans(prompt, image_token)
    cross = None
    if sees:
        cross = CrossKVCache.from_images([[net.model.encode_image(torch.randn(2, 3, 56, 56), 2)]])
    text = net.language_model.config
    caches = [KVCache(text, device=DEVICE) for _ in range(2)]
    for cache in caches:
        logits = forward(net, torch.tensor([prompt], device=DEVICE), cache, cross, [spans])

    state = State(net, 1, torch.float32, DEVICE)
    choice, step = Choice(state), DecodeStep(net, state, sees=sees)
    ours = caches[1]
    ours.keys, ours.values = align(ours.keys, state.own.base), align(ours.values, state.own.base)
    state.own.fill(ours.keys, ours.values)
    if cross is not None:
        pairs = [align([layer[which] for layer in cross.layers], state.cross.base) for which in (0, 1)]
        state.cross.fill(*pairs)
        seen = segments(spans, cross.image_tokens[0], len(prompt), len(prompt) + 1)[0]
        state.ranges.copy_(torch.tensor([[seen.key_start, seen.key_end]]))
    state.logits.copy_(logits)
    state.positions.fill_(len(prompt) - 1)
    choice.set_row(0, Sampling(), prompt)
    choice.greedy()
    for _ in range(1 if packed else 3):
        token = int(logits.argmax())
        assert int(state.tokens) == token
        logits = forward(net, torch.tensor([[token]], device=DEVICE), caches[0], cross, [spans])
        step.run()
        assert apart(state.logits, logits) < (1e-5 if packed is None else 1e-3)
        state.logits.copy_(logits)
        choice.greedy()


def test_a_mixture_inside_one_kernel_is_refused() -> None:
    mixed = network({"q_proj": 4})
    assert not all(operands.alike([operands.operand(m) for m in modules]) for modules in operands.groups(mixed))
    uniform = network({"proj": 4, "lm_head": 8})
    assert all(operands.alike([operands.operand(m) for m in modules]) for modules in operands.groups(uniform))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, top_p=0.8, seed=3),
        Sampling(temperature=0.9, top_k=5, min_p=0.1, seed=3, repetition_penalty=1.3),
    ],
)
def test_sampled_tokens_have_the_probabilities_of_the_reference(sampling: Sampling) -> None:
    torch.manual_seed(0)
    state = State(network(), 1, torch.float32, DEVICE)
    choice = Choice(state)
    scores = torch.randn(state.logits.shape[1], device=DEVICE) * 3
    state.logits.copy_(scores[None])
    known = [1, 2, 3]
    choice.set_row(0, sampling, known)
    part = scores[known]
    scores[known] = torch.where(part < 0, part * sampling.repetition_penalty, part / sampling.repetition_penalty)
    expected = filtered_probabilities(scores, sampling)
    seen, draws = choice.seen.clone(), 1500
    counts = torch.zeros_like(scores)
    for number in range(draws):
        choice.refill(0, number)
        choice.sampled()
        choice.seen.copy_(seen)
        counts[int(state.tokens)] += 1
    assert counts[expected == 0].sum() == 0
    assert float((counts / draws - expected).abs().sum()) / 2 < 0.05


def test_a_seed_repeats_its_tokens_and_another_does_not() -> None:
    state = State(network(), 1, torch.float32, DEVICE)
    choice = Choice(state)
    state.logits.copy_(torch.randn_like(state.logits))
    drawn = []
    for seed in (7, 7, 8):
        choice.set_row(0, Sampling(temperature=1.5, seed=seed), [])
        row = []
        for number in range(12):
            choice.refill(0, number)
            choice.sampled()
            row.append(int(state.tokens))
        drawn.append(row)
    assert drawn[0] == drawn[1] != drawn[2]


def test_scores_that_are_not_numbers_choose_nothing() -> None:
    state = State(network(), 1, torch.float32, DEVICE)
    choice = Choice(state)
    choice.set_row(0, Sampling(temperature=1, seed=1), [])
    state.logits.fill_(torch.nan)
    choice.sampled()
    assert int(state.tokens) == -1
