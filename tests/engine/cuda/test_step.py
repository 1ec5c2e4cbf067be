"""A decode step as kernels against the network itself, with the greedy choice at its end."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.triton_here import DEVICE, aligned, apart, few_programs  # isort: skip  (first: it prepares Triton)

from mllama_cli.benchmark.random_network import random_matrix
from mllama_cli.engine.cuda import operands
from mllama_cli.engine.cuda.step import DecodeStep, State
from mllama_cli.engine.forward import forward
from mllama_cli.kernels.cuda.embed_argmax import Argmax
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.layers import set_exact
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.visibility import image_spans, segments
from mllama_cli.quantization.linear import AdaptedLinear, QuantizedLinear
from mllama_cli.quantization.schemes import Scheme
from tests.checkpoints import config_dict, random_network


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        "mllama_cli.kernels.cuda.attention_api.TARGET_PROGRAMS", 8
    )  # the interpreter runs them one by one
    few_programs(monkeypatch)
    with torch.inference_mode():
        yield


CODED = {"nf4": Scheme(4, 32, "nf4"), "fp8": Scheme(8, 0, "fp8")}


def network(
    packed: dict[str, int | str] | None = None, adapted: tuple[str, ...] = ()
) -> MllamaForConditionalGeneration:
    """A small one; ``packed`` gives the bits, or the code, of the linear layers whose names end so.

    Those of them whose names end with one of ``adapted`` have an adapter.
    """
    text = {"num_hidden_layers": 3, "cross_attention_layers": [1], "intermediate_size": 64}
    text |= {"hidden_size": 128, "num_attention_heads": 4}  # heads of 32: the least that a GPU's matrix units take
    made = random_network(config_dict(text=text), seed=5)
    assert isinstance(made, MllamaForConditionalGeneration)
    for name, module in list(made.named_modules()):
        bits = next((bits for end, bits in reversed((packed or {}).items()) if name.endswith(end)), None)
        if bits is not None and isinstance(module, torch.nn.Linear) and "vision_model" not in name:
            owner, _, attribute = name.rpartition(".")
            scheme = CODED[bits] if isinstance(bits, str) else Scheme(bits, 32)
            shape = module.in_features, module.out_features
            new = AdaptedLinear(*shape, scheme, 5) if name.endswith(adapted) else QuantizedLinear(*shape, scheme)
            if isinstance(new, AdaptedLinear):
                drawn = (torch.randn(5, shape[0]) / shape[0] ** 0.5, torch.randn(shape[1], 5) / 5**0.5)
                new.fill_change(*(each.to(DEVICE) for each in drawn))
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
        pytest.param({"proj": "nf4"}, marks=pytest.mark.slow),
        {"mlp.up_proj": "fp8", "mlp.gate_proj": "fp8", "down_proj": "nf4", "attn.o_proj": "fp8"},
    ],
    ids=["plain", "8 bits", "mixed", "nf4", "mixed with codes"],
)
def test_steps_give_the_networks_logits(sees: bool, packed: dict[str, int | str] | None) -> None:
    compare(network(packed), sees, 1e-5 if packed is None else 1e-3, steps=1 if packed else 3)


@pytest.mark.parametrize(
    ("packed", "adapted"),
    [
        ({"proj": 4, "lm_head": 8}, ("proj", "lm_head")),
        pytest.param({"proj": "fp8"}, ("v_proj", "up_proj", "cross_attn.o_proj"), marks=pytest.mark.slow),
        pytest.param({"proj": 4, "down_proj": 8}, ("q_proj", "gate_proj", "down_proj"), marks=pytest.mark.slow),
    ],
    ids=["all", "some", "other forms"],
)
def test_steps_add_what_adapters_do(packed: dict[str, int | str], adapted: tuple[str, ...]) -> None:
    net = network(packed, adapted)
    assert any(isinstance(module, AdaptedLinear) for module in net.modules())
    compare(net, True, 1e-3, steps=1)


@pytest.mark.parametrize(
    ("packed", "adapted"),
    [
        ({"k_proj": "nf4", "v_proj": "nf4", "mlp.up_proj": "nf4", "down_proj": "fp8"}, ()),
        pytest.param({"q_proj": 4, "k_proj": 8, "mlp.gate_proj": "fp8", "mlp.up_proj": 4}, (), marks=pytest.mark.slow),
        pytest.param(
            {"q_proj": 4, "v_proj": 8, "mlp.gate_proj": "nf4"}, ("q_proj", "gate_proj"), marks=pytest.mark.slow
        ),
    ],
    ids=["16 bits and packed", "4 and 8 bits", "adapted"],
)
def test_layers_that_one_kernel_would_read_may_differ_in_format(
    packed: dict[str, int | str], adapted: tuple[str, ...]
) -> None:
    net = network(packed, adapted)
    formats = [{operands.format_of(operands.operand(m)) for m in modules} for modules in operands.groups(net)]
    assert sum(len(each) > 1 for each in formats) > 2
    compare(net, True, 1e-3, steps=1)


def compare(net: MllamaForConditionalGeneration, sees: bool, tolerance: float, steps: int) -> None:
    """Compare steps after a prompt with the network's logits."""
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
    best, step = Argmax(1, text.vocab_size, DEVICE), DecodeStep(net, state, with_images=sees)
    ours = caches[1]
    ours.keys, ours.values = align(ours.keys, state.self_attn.base), align(ours.values, state.self_attn.base)
    for row in range(len(ours.lengths)):
        state.self_attn.set(row, *([t[row : row + 1] for t in tensors] for tensors in (ours.keys, ours.values)))
    if cross is not None:
        pairs = [align([layer[which] for layer in cross.layers], state.cross_attn.base) for which in (0, 1)]
        for row in range(len(ours.lengths)):
            state.cross_attn.set(row, *([t[row : row + 1] for t in tensors] for tensors in pairs))
        seen = segments(spans, cross.image_tokens[0], len(prompt), len(prompt) + 1)[0]
        state.ranges.copy_(torch.tensor([[seen.key_start, seen.key_end]]))
    state.logits.copy_(logits)
    state.positions.fill_(len(prompt) - 1)
    best(state.logits, state.tokens, state.positions)
    for _ in range(steps):
        token = int(logits.argmax())
        assert int(state.tokens) == token
        logits = forward(net, torch.tensor([[token]], device=DEVICE), caches[0], cross, [spans])
        step.run()
        assert apart(state.logits, logits) < tolerance
        state.logits.copy_(logits)
        best(state.logits, state.tokens, state.positions)
