"""nf4 and FP8 files stay packed on a GPU, decode from captured graphs, and answer as their dense twins."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import Notice
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.decode import GraphDecoder
from mllama_cli.engine.cuda.self_check import relative_error
from mllama_cli.engine.engine import Engine, load
from mllama_cli.kernels.packed import dequantize
from mllama_cli.quantization.linear import AdaptedLinear, QuantizedLinear
from tests.engine.conftest import picture
from tests.quantization.test_other_forms import stored_as

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", ["nf4 double", "fp4", "FP8_DYNAMIC", "FP8_BLOCK"])
def test_a_model_in_another_tool_s_form(name: str, tmp_path: Path) -> None:
    made, plain = stored_as(name, tmp_path)
    notices: list[str] = []

    def note(event: object) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)

    engine: Engine = load(made, device="cuda", dtype="bfloat16", vision=True, progress=note)
    twin = load(plain, device="cuda", dtype="bfloat16", vision=True)
    assert not any("Reading weights" in notice for notice in notices)
    for key, layer in engine.network.named_modules():
        if isinstance(layer, QuantizedLinear):
            assert layer.scheme.code in ("nf4", "fp4", "fp8")
            expected = twin.network.get_submodule(key).weight
            assert isinstance(expected, torch.Tensor)
            assert torch.equal(dequantize(layer.packed, torch.bfloat16), expected)
    for conversation in (Conversation.ask("Hello"), Conversation.ask("What?", (picture("red"),))):
        assert list(engine.session().stream(conversation, Sampling(temperature=0, max_tokens=20)))
        assert engine.fallback_reason == ""
        ours, theirs = (each.session().probabilities(conversation, ["Yes", "No"]) for each in (engine, twin))
        assert ours == pytest.approx(theirs, rel=0.05)
    for count in (1, 3):
        replies = engine.answer_batch([Conversation.ask("Hello")] * count, Sampling(temperature=0, max_tokens=2))
        assert len({reply.text for reply in replies}) == 1  # more tokens may differ by rounding: prompts are read apart
    for sees in (False, True):
        decoder = GraphDecoder(engine.network, torch.bfloat16, engine.device)
        assert relative_error(decoder, engine.network, with_images=sees) < 0.03


def write_adapter(folder: Path, network: torch.nn.Module, rank: int = 8) -> Path:
    """Write a LoRA adapter of random numbers for every packed layer of the language model."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "init_lora_weights": True}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, QuantizedLinear) and "language_model" in name:
            a = torch.randn(rank, module.in_features) / module.in_features**0.5
            b = 0.05 * torch.randn(module.out_features, rank)
            tensors |= {f"base_model.model.{name}.lora_{part}.weight": each for part, each in (("A", a), ("B", b))}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "rank"), [("W4A16", 8), ("W4A16", 40), ("nf4 double", 8), ("FP8_DYNAMIC", 8), ("FP8_DYNAMIC", 16)]
)
def test_an_adapter_over_packed_weights(name: str, rank: int, tmp_path: Path) -> None:
    made, _ = stored_as(name, tmp_path)
    plain = load(made, device="cuda", dtype="bfloat16", vision=True)
    adapter = write_adapter(tmp_path / "adapter", plain.network, rank)
    engine = load(made, device="cuda", dtype="bfloat16", vision=True, adapters=adapter)
    assert any(isinstance(module, AdaptedLinear) for module in engine.network.modules())
    ask = Conversation.ask("What?", (picture("red"),))
    assert list(engine.session().stream(ask, Sampling(temperature=0, max_tokens=20)))
    assert engine.fallback_reason == ""
    before, after = (each.session().probabilities(ask, ["Yes", "No"]) for each in (plain, engine))
    assert before != pytest.approx(after, rel=1e-3)
    for sees in (False, True):
        decoder = GraphDecoder(engine.network, torch.bfloat16, engine.device)
        assert relative_error(decoder, engine.network, with_images=sees) < 0.03
