"""LoRA adapters that PEFT saved: weights as by PEFT's own merge, and over packed ones products as by PEFT itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mllama_cli.checkpoint.names import canonical, hub_name
from mllama_cli.core.conversation import Conversation, Message, TextPart
from mllama_cli.core.errors import CheckpointError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine, load
from mllama_cli.kernels.cpu.native import native
from mllama_cli.kernels.packed import dequantize
from mllama_cli.quantization.linear import AdaptedLinear, QuantizedLinear
from mllama_cli.quantization.plan import make_plan
from tests.checkpoints import config_dict, make_checkpoint, random_network, text_only_config
from tests.engine.conftest import picture
from tests.peers import transformers_model
from tests.quantization.running import FOUR, run

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
UNSLOTH = (
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:q_proj|k_proj|v_proj|o_proj|fc1|fc2|gate_proj|up_proj|down_proj).*?)"
)
KINDS: dict[str, dict[str, Any]] = {
    "query and value, also of the vision tower": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "all by an expression": {"r": 4, "lora_alpha": 4, "target_modules": UNSLOTH},
    "head and projector": {"r": 4, "lora_alpha": 8, "target_modules": [*ALL, "multi_modal_projector", "lm_head"]},
    "rslora": {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "dora": {"r": 8, "lora_alpha": 16, "target_modules": ALL, "use_dora": True},
    "patterns": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 4},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 32, "^model.language_model.layers.2.self_attn.v_proj$": 1},
    },
    "modules_to_save": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
        "modules_to_save": ["multi_modal_projector"],
    },
    "embeddings": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "embed_tokens"],
        "modules_to_save": ["lm_head"],
    },
    "bias": {"r": 4, "lora_alpha": 8, "target_modules": ["fc1", "fc2"], "lora_bias": True},
}
SIMPLE = KINDS["query and value, also of the vision tower"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "base", seed=5)


def make_adapter(folder: Path, kind: dict[str, Any], config: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """Write an adapter of random numbers with PEFT; return the weights that it gives by its own merge."""
    peft = pytest.importorskip("peft")
    config = config or config_dict()
    model = peft.get_peft_model(transformers_model(config, random_network(config, 5)), peft.LoraConfig(**kind))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
        elif "lora_" in name or ".modules_to_save." in name:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return {name: tensor.detach() for name, tensor in model.merge_and_unload().state_dict().items()}


def rename(folder: Path, change: Any) -> None:
    """Change the names of an adapter's tensors."""
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {change(name): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "adapter_model.safetensors")


def in_old_layout(name: str) -> str:
    return "base_model.model." + hub_name(name.removeprefix("base_model.model."))


def weights_of(engine: Engine) -> dict[str, torch.Tensor]:
    """Return the weights that are loaded."""
    return {name: parameter for name, parameter in engine.network.named_parameters() if not parameter.is_meta}


def differences(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    assert ours.keys() <= expected.keys()
    found = {name: float((ours[name] - expected[name]).abs().max()) for name in ours}
    return {name: value for name, value in found.items() if value > 1e-6}


def text_of(engine: Engine) -> str:
    parts = (picture(), TextPart("What is this?"))
    answers = engine.answer_batch([Conversation((Message("user", parts),))], Sampling(temperature=0, max_tokens=12))
    return answers[0].text


@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_of_pefts_merge(base: Path, tmp_path: Path, kind: str, layout: str) -> None:
    expected = make_adapter(tmp_path / "adapter", KINDS[kind])
    if layout == "old":
        rename(tmp_path / "adapter", in_old_layout)
    plain = weights_of(load(base, device="cpu", dtype="float32", vision=True))
    ours = weights_of(load(base, device="cpu", dtype="float32", vision=True, adapters=tmp_path / "adapter"))
    assert differences(ours, plain)
    assert not differences(ours, expected)


def test_several_adapters_add_up(base: Path, tmp_path: Path) -> None:
    plain = weights_of(load(base, device="cpu", dtype="float32", vision=True))
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    folders = [tmp_path / "one", tmp_path / "two"]
    single = [make_adapter(folder, SIMPLE)[name] - plain[name] for folder in folders]
    both = weights_of(load(base, device="cpu", dtype="float32", vision=True, adapters=folders))
    assert torch.allclose(both[name] - plain[name], sum(single, torch.zeros(())), atol=1e-6)


def test_an_adapter_of_a_text_only_model_fits_the_whole_one_and_itself(base: Path, tmp_path: Path) -> None:
    expected = make_adapter(tmp_path / "adapter", SIMPLE, text_only_config())
    text_only = make_checkpoint(tmp_path / "text", text_only_config(), seed=5)
    ours = weights_of(load(text_only, device="cpu", dtype="float32", adapters=tmp_path / "adapter"))
    assert not differences(ours, expected)
    name = "layers.0.self_attn.q_proj.weight"
    plain = weights_of(load(base, device="cpu", dtype="float32", vision=True))[f"model.language_model.{name}"]
    whole = weights_of(load(base, device="cpu", dtype="float32", vision=True, adapters=tmp_path / "adapter"))
    assert not torch.equal(whole[f"model.language_model.{name}"], plain)


def test_a_bfloat16_model_is_rounded_once(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "base", seed=5, dtype=torch.bfloat16)
    make_adapter(tmp_path / "adapter", SIMPLE)
    exact, rounded = (
        weights_of(load(source, device="cpu", dtype=dtype, adapters=tmp_path / "adapter"))
        for dtype in ("float32", "bfloat16")
    )
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(exact[name].bfloat16(), rounded[name])


def test_over_packed_weights_changes_are_multiplied_apart_as_peft_does(base: Path, tmp_path: Path) -> None:
    """In 4 bits most of an adapter's change would be lost, so the packed matrices stay as they are."""
    run(make_plan(base, FOUR), tmp_path / "packed")
    make_adapter(tmp_path / "adapter", SIMPLE)
    plain, changed = (
        load(tmp_path / "packed", device="cpu", dtype="float32", vision=True, exact=True, adapters=folders)
        for folders in ((), tmp_path / "adapter")
    )
    peft = pytest.importorskip("peft")
    config = config_dict()
    unmerged = peft.PeftModel.from_pretrained(
        transformers_model(config, random_network(config, 5)), tmp_path / "adapter"
    )
    adapted = []
    for name, module in changed.network.named_modules():
        if not isinstance(module, QuantizedLinear):
            continue
        before = plain.network.get_submodule(name)
        assert isinstance(before, QuantizedLinear)
        assert module.scheme == before.scheme
        assert torch.equal(module.packed.packed, before.packed.packed)
        assert isinstance(module, AdaptedLinear) == name.endswith(("q_proj", "v_proj"))
        if isinstance(module, AdaptedLinear):
            adapted.append(name)
            theirs = unmerged.base_model.model.get_submodule(name)
            theirs.base_layer.weight.data = dequantize(before.packed)
            x = torch.randn(2, 5, module.in_features)
            torch.testing.assert_close(module(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert len(adapted) == 10
    assert text_of(changed)


def test_several_adapters_over_packed_weights_add_up(base: Path, tmp_path: Path) -> None:
    run(make_plan(base, FOUR), tmp_path / "packed")
    folders = [tmp_path / "one", tmp_path / "two"]
    make_adapter(folders[0], SIMPLE)
    make_adapter(folders[1], KINDS["rslora"])
    name = "model.language_model.layers.0.self_attn.q_proj"
    x, results = torch.randn(3, config_dict()["text_config"]["hidden_size"]), []
    for given in ([], folders[:1], folders[1:], folders):
        engine = load(tmp_path / "packed", device="cpu", dtype="float32", exact=True, adapters=given)
        results.append(engine.network.get_submodule(name)(x))
    none, one, two, both = results
    torch.testing.assert_close(both - none, (one - none) + (two - none), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one, two)


def test_over_packed_weights_changes_that_are_more_than_low_rank_give_8_bits(base: Path, tmp_path: Path) -> None:
    run(make_plan(base, FOUR), tmp_path / "packed")
    make_adapter(tmp_path / "adapter", KINDS["dora"])
    events: list[Any] = []
    engine = load(
        tmp_path / "packed", device="cpu", dtype="float32", adapters=tmp_path / "adapter", progress=events.append
    )
    module = engine.network.get_submodule("model.language_model.layers.0.self_attn.q_proj")
    assert type(module) is QuantizedLinear
    assert module.scheme.bits == 8
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    (lengths,) = (t for name, t in stored.items() if "language_model.layers.0.self_attn.q_proj.lora_magnitude" in name)
    torch.testing.assert_close(dequantize(module.packed).norm(dim=1), lengths, rtol=0.01, atol=0)
    assert any("8 bits" in getattr(event, "text", "") for event in events)


@pytest.mark.parametrize("form", ["FP8", "INT8"])
def test_over_matrices_in_other_forms_the_sum_is_that_of_the_dense_ones(base: Path, tmp_path: Path, form: str) -> None:
    folder = tmp_path / "other"
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    scale = tensors[name].abs().amax(1, keepdim=True) / 100
    stored = tensors[name] / scale
    tensors[name] = stored.to(torch.float8_e4m3fn) if form == "FP8" else stored.round().to(torch.int8)
    save_file({**tensors, f"{name}_scale": scale}, folder / "model.safetensors", {"format": "pt"})
    make_adapter(tmp_path / "adapter", SIMPLE)
    ours = canonical(name)
    plain = weights_of(load(base, device="cpu", dtype="float32", adapters=tmp_path / "adapter"))[ours]
    engine = load(folder, device="cpu", dtype="float32", adapters=tmp_path / "adapter")
    module = engine.network.get_submodule(ours.removesuffix(".weight"))
    if form == "INT8" or native() is not None:
        assert isinstance(module, AdaptedLinear)
        changed = dequantize(module.packed) + module.lora_b @ module.lora_a
    else:
        changed = weights_of(engine)[ours]
    source = weights_of(load(base, device="cpu", dtype="float32"))[ours]
    assert torch.allclose(changed, tensors[name].float() * scale + plain - source, atol=1e-5)


def test_quantizing_while_loading_quantizes_the_merged_weights(base: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "adapter", SIMPLE)
    engine = load(base, device="cpu", dtype="float32", quantize="int8", vision=True, adapters=tmp_path / "adapter")
    merged = weights_of(load(base, device="cpu", dtype="float32", vision=True, adapters=tmp_path / "adapter"))
    module = engine.network.get_submodule("model.language_model.layers.0.self_attn.q_proj")
    assert isinstance(module, QuantizedLinear)
    wanted = merged["model.language_model.layers.0.self_attn.q_proj.weight"]
    assert (dequantize(module.packed) - wanted).norm() < 0.01 * wanted.norm()


def edited(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def without_b(name: str) -> str:
    return name.replace("lora_B", "lora_C")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: edited(folder, peft_type="IA3"), ("peft_type is 'IA3'", "Only LoRA")),
        (lambda folder: edited(folder, lora_alpha="16"), ("lora_alpha must be a number",)),
        (lambda folder: edited(folder, init_lora_weights="pissa"), ("init_lora_weights 'pissa'",)),
        (lambda folder: edited(folder, alpha_pattern={"(a+)+$": 3}), ("the expression '(a+)+$'",)),
        (lambda folder: edited(folder, use_dora=True), ("DoRA magnitude",)),
        (lambda folder: edited(folder, layer_replication=[[0, 4]]), ("layer_replication",)),
        (lambda folder: (folder / "adapter_config.json").unlink(), ("is not an adapter",)),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), ("not valid JSON",)),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), ("no adapter_model.safetensors",)),
        (
            lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
            ("adapter_model.bin, which may run code", "safetensors"),
        ),
        (lambda folder: rename(folder, without_b), ("of its LoRA alone",)),
        (lambda folder: rename(folder, lambda name: name.replace("layers.0.", "layers.7.")), ("are not in the model",)),
    ],
)
def test_other_adapters_and_damaged_ones_are_named(base: Path, tmp_path: Path, change: Any, words: Any) -> None:
    make_adapter(tmp_path / "adapter", SIMPLE)
    change(tmp_path / "adapter")
    with pytest.raises(CheckpointError) as caught:
        load(base, device="cpu", adapters=tmp_path / "adapter")
    for word in words:
        assert word in f"{caught.value.message} {caught.value.hint}"


def test_an_adapter_for_a_wider_model_is_refused_with_its_base(base: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "adapter", SIMPLE, config_dict({"hidden_size": 128}))
    edited(tmp_path / "adapter", base_model_name_or_path="owner/wider")
    with pytest.raises(CheckpointError, match=r"shape .*, the model's has") as caught:
        load(base, device="cpu", adapters=tmp_path / "adapter")
    assert "owner/wider" in caught.value.hint


def test_weights_that_are_not_numbers_are_refused(base: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "adapter", SIMPLE)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load(base, device="cpu", vision=True, adapters=tmp_path / "adapter")
