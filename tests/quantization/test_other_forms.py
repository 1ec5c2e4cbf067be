"""Whole models in the forms of other tools: they answer as their dense twins, and become 8 or 4 bits where asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import CheckpointError, MllamaError, UsageError
from mllama_cli.core.events import Event, Notice, QuantizeProgress
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine, load
from mllama_cli.engine.weights import loader
from mllama_cli.kernels import ops
from mllama_cli.kernels.packed import dequantize
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.quantization.plan import make_plan
from mllama_cli.quantization.policy import QuantizeOptions
from mllama_cli.quantization.schemes import Scheme
from tests.checkpoint.foreign.writers import FORMS
from tests.checkpoints import config_dict, make_checkpoint
from tests.console import run_here
from tests.engine.conftest import picture
from tests.quantization.running import run, weights

WIDTHS = {"hidden_size": 128, "intermediate_size": 256}
CONFIG = config_dict({**WIDTHS, "num_key_value_heads": 4}, WIDTHS)
BITSANDBYTES = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
    "llm_int8_skip_modules": ["lm_head", "multi_modal_projector", "language_model.model.layers.1.mlp"],
}  # fmt: skip


def stored_as(name: str, folder: Path, declared: dict[str, Any] | None = None) -> tuple[Path, Path]:
    """Write a model in a form, as its tool would, and its dense twin.

    One layer in 16 bits is listed nowhere, and one that is listed is quantized: such lists are not to be trusted.
    """
    plain = make_checkpoint(folder / "plain", CONFIG, dtype=torch.bfloat16)
    write, _ = FORMS[name]
    everywhere = "fp4" in name or "nf4" in name or name == "LLM.int8"
    stored: dict[str, Tensor] = {}
    dense: dict[str, Tensor] = {}
    for key, tensor in load_file(plain / "model.safetensors").items():
        linear = ".layers." in key and ("_proj" in key or ".fc" in key) and key.endswith(".weight")
        if linear and (everywhere or "vision" not in key) and "layers.2.mlp.up" not in key:
            parts, read = write(tensor.float())
            stored.update({key.removesuffix(".weight") + end: part.contiguous() for end, part in parts.items()})
            dense[key] = read.reshape(tensor.shape)
        else:
            stored[key] = dense[key] = tensor
    made = folder / "made"
    made.mkdir()
    for file in plain.iterdir():
        (made / file.name).write_bytes(file.read_bytes())
    save_file(stored, made / "model.safetensors", {"format": "pt"})
    save_file(dense, plain / "model.safetensors", {"format": "pt"})
    config = {**CONFIG, "torch_dtype": "bfloat16", "quantization_config": declared or BITSANDBYTES}
    (made / "config.json").write_text(json.dumps(config))
    return made, plain


def text_of(engine: Engine) -> str:
    (reply,) = engine.answer_batch([Conversation.ask("Hello")], Sampling(temperature=0, max_tokens=12))
    return reply.text


def opened(folder: Path, **how: Any) -> tuple[Engine, list[str]]:
    events: list[Event] = []
    engine = load(folder, device="cpu", vision=True, exact=True, progress=events.append, **how)
    return engine, [event.text for event in events if isinstance(event, Notice)]


@pytest.mark.parametrize("name", FORMS)
def test_the_answer_is_the_dense_twin_s(name: str, tmp_path: Path) -> None:
    made, plain = stored_as(name, tmp_path)
    engine, _ = opened(made, dtype="float32")
    twin, _ = opened(plain, dtype="float32")
    for key, expected in twin.network.state_dict().items():
        owner = engine.network.get_submodule(key.rpartition(".")[0])
        if isinstance(owner, QuantizedLinear) and key.endswith(".weight"):
            torch.testing.assert_close(dequantize(owner.packed), expected, rtol=2**-7, atol=0)
        else:
            assert torch.equal(engine.network.state_dict()[key], expected), key
    assert text_of(engine) == text_of(twin)


@pytest.fixture
def _integers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a CPU without a compiler."""
    monkeypatch.setattr(ops, "multiplies_packed", lambda code, device: code == "int")


@pytest.mark.usefixtures("_integers_alone")
def test_a_line_says_what_16_bits_cost(tmp_path: Path) -> None:
    made, _ = stored_as("nf4 double", tmp_path)
    _, notices = opened(made, dtype="bfloat16")
    (notice,) = [each for each in notices if "nf4" in each]
    assert "as bfloat16" in notice
    assert "--quantize int8" in notice


@pytest.mark.usefixtures("_integers_alone")
def test_what_does_not_fit_in_16_bits_becomes_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, plain = stored_as("nf4 double", tmp_path)
    matrices = sum(t.nbytes for key, t in weights(plain).items() if ".layers." in key and t.dim() == 2)
    monkeypatch.setattr(loader, "free_bytes", lambda device: loader.HEADROOM + int(0.7 * matrices))
    engine, notices = opened(made, dtype="bfloat16")
    (notice,) = [each for each in notices if "nf4" in each]
    assert "as int8" in notice
    assert "does not fit" in notice
    expected = weights(plain)
    for tower in ("model.vision_model.transformer.layers.0.mlp.fc1", "model.language_model.layers.0.mlp.up_proj"):
        layer = engine.network.get_submodule(tower)
        assert isinstance(layer, QuantizedLinear)
        assert layer.scheme == Scheme(8, 128)
        dense = expected[f"{tower}.weight"].float()
        assert (dequantize(layer.packed) - dense).norm() < 0.01 * dense.norm()


@pytest.mark.parametrize("name", ["nf4 double", "fp4", "FP8_DYNAMIC", "FP8_BLOCK", "FP8 per tensor"])
def test_a_device_that_multiplies_them_keeps_them_packed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, plain = stored_as(name, tmp_path)
    monkeypatch.setattr(ops, "multiplies_packed", lambda code, device: True)
    engine, notices = opened(made, dtype="bfloat16")
    assert not any(FORMS[name][1] in notice for notice in notices)
    expected = weights(plain)
    packed = {key: m for key, m in engine.network.named_modules() if isinstance(m, QuantizedLinear)}
    assert len(packed) > 10
    for key, layer in packed.items():
        assert layer.scheme.code == name[:3].lower()
        assert torch.equal(dequantize(layer.packed, torch.bfloat16), expected[f"{key}.weight"])
    sizes = sum(
        parameter.nbytes for layer in packed.values() for parameter in (layer.weight_packed, layer.weight_scale)
    )
    assert sizes < 0.6 * sum(expected[f"{key}.weight"].nbytes for key in packed)
    twin, _ = opened(plain, dtype="bfloat16")
    for conversation in (Conversation.ask("Hello"), Conversation.ask("What?", (picture("red"),))):
        ours, theirs = (each.session().probabilities(conversation, ["Yes", "No"]) for each in (engine, twin))
        assert ours == pytest.approx(theirs, rel=0.02)


def test_fewer_bits_than_asked_for_stay_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "multiplies_packed", lambda code, device: True)
    made, _ = stored_as("nf4", tmp_path)
    schemes = {}
    for wanted in ("int8", "int4"):
        engine = load(made, device="cpu", quantize=wanted)
        layer = engine.network.get_submodule("model.language_model.layers.0.mlp.up_proj")
        assert isinstance(layer, QuantizedLinear)
        schemes[wanted] = layer.scheme
    assert set(schemes.values()) == {Scheme(4, 64, "nf4")}
    fp8, _ = stored_as("FP8_DYNAMIC", tmp_path / "fp8")
    layer = load(fp8, device="cpu", quantize="int4").network.get_submodule("model.language_model.layers.0.mlp.up_proj")
    assert isinstance(layer, QuantizedLinear)
    assert layer.scheme.code == "int"


@pytest.mark.usefixtures("_integers_alone")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["nf4 double", "FP8_DYNAMIC", "W4A16_ASYM"])
def test_quantizing_gives_what_it_gives_of_the_dense_twin(name: str, bits: int, tmp_path: Path) -> None:
    made, plain = stored_as(name, tmp_path)
    options = QuantizeOptions(Scheme(bits, 128), "rtn")
    for source, folder in ((made, tmp_path / "from made"), (plain, tmp_path / "from plain")):
        plan = make_plan(source, options)
        events = run(plan, folder)
        progress = [event for event in events if isinstance(event, QuantizeProgress)]
        assert progress[-1].done == progress[-1].total == plan.size_before
    from_made, from_plain = weights(tmp_path / "from made"), weights(tmp_path / "from plain")
    assert from_made.keys() == from_plain.keys()
    assert all(torch.equal(from_made[key], from_plain[key]) for key in from_made)
    on_load = load(made, device="cpu", vision=True, dtype="bfloat16", quantize=f"int{bits}").network.state_dict()
    stored = load(tmp_path / "from plain", device="cpu", vision=True, dtype="bfloat16").network.state_dict()
    assert on_load.keys() == stored.keys()
    assert all(torch.equal(on_load[key], stored[key]) for key in stored)


def test_matrices_of_as_few_bits_stay_as_they_are(tmp_path: Path) -> None:
    made, _ = stored_as("GPTQ", tmp_path)
    engine = load(made, device="cpu", quantize="int8")
    layer = engine.network.get_submodule("model.language_model.layers.0.mlp.up_proj")
    assert isinstance(layer, QuantizedLinear)
    assert layer.scheme == Scheme(4, 32)
    head = engine.network.lm_head
    assert isinstance(head, QuantizedLinear)
    assert head.scheme.bits == 8
    packed, _ = stored_as("W4A16", tmp_path / "ours")
    with pytest.raises(UsageError, match="quantized already"):
        load(packed, device="cpu", quantize="int8")


def test_16_bit_weights_with_a_left_over_config_are_read_as_they_are(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "model", {**CONFIG, "quantization_config": BITSANDBYTES}, dtype=torch.bfloat16)
    engine, notices = opened(made, dtype="bfloat16")
    assert torch.equal(engine.network.lm_head.weight, weights(made)["lm_head.weight"])
    assert any("bitsandbytes" in notice and "not" in notice for notice in notices)


def test_an_unknown_tool_is_refused_by_the_name_that_config_json_gives(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "model", {**CONFIG, "quantization_config": {"quant_method": "newtool"}})
    tensors = load_file(made / "model.safetensors")
    tensors["language_model.model.layers.0.mlp.up_proj.codes"] = torch.zeros(3)
    save_file(tensors, made / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="newtool") as error:
        load(made)
    assert error.value.hint


@pytest.mark.parametrize(
    ("name", "said"),
    [("nf4 double", "read as they are (bitsandbytes nf4 (double))"),
     ("FP8_DYNAMIC", "read as they are (FP8 per channel)"), ("NVFP4A16", "as 16 bit where that fits"),
     ("W8A8", "repacked exactly (int8)"),
     ("GPTQ", "repacked exactly (int4)"), ("W4A16", "packed as they are")],
)  # fmt: skip
def test_show_tells_what_is_there(name: str, said: str, tmp_path: Path) -> None:
    made, plain = stored_as(name, tmp_path)
    result = run_here("show", str(made))
    assert result.code == 0
    assert said in " ".join(result.out.split())
    both = [json.loads(run_here("show", str(each), "--json").out) for each in (made, plain)]
    assert both[0]["parameters"] == both[1]["parameters"]
    assert both[0]["bits_per_weight"] < both[1]["bits_per_weight"] == 16


def test_show_fails_with_the_reason_for_what_is_not_read(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "model", CONFIG)
    tensors = load_file(made / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, made / "model.safetensors", {"format": "pt"})
    with pytest.raises(MllamaError) as error:
        load(made)
    result = run_here("show", str(made))
    assert result.code == 1
    assert error.value.message in result.err
