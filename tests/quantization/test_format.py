"""Exchange files with compressed-tensors and transformers: their packing and loading against ours."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mllama_cli.checkpoint.writer import write_checkpoint
from mllama_cli.engine.engine import Engine, load
from mllama_cli.kernels.packed import PackedWeight, dequantize, pack, unpack
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.quantization.plan import make_plan
from mllama_cli.quantization.policy import QuantizeOptions
from mllama_cli.quantization.quantize import quantize
from mllama_cli.quantization.rounding import quantize_matrix
from mllama_cli.quantization.schemes import Scheme
from tests.checkpoints import VOCABULARY, config_dict, make_checkpoint, text_only_config
from tests.peers import peer_logits

# Not imported during collection: it imports Triton, which tests/triton_here.py must configure first.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="compressed-tensors is not installed"
)
IMAGE = VOCABULARY
CONFIG = config_dict({"hidden_size": 128, "intermediate_size": 256})


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn our kernels off, since the format is compared, with ``exact`` engines."""
    monkeypatch.setenv("MLLAMA_CPU_KERNELS", "off")


def quantized(
    folder: Path, options: QuantizeOptions, config: dict[str, Any] = CONFIG, dtype: torch.dtype = torch.float32
) -> Path:
    source = make_checkpoint(folder / "source", config, dtype=dtype)
    for _ in quantize(make_plan(source, options), folder / "made"):
        pass
    return folder / "made"


def transformers_of(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load a folder with transformers, its intermediate layers moved to Meta's (tests/peers.py, A)."""
    from transformers import AutoConfig, MllamaForCausalLM, MllamaForConditionalGeneration

    config = AutoConfig.from_pretrained(folder)
    kind: Any = MllamaForCausalLM
    if config.model_type == "mllama":
        vision = config.vision_config
        vision.intermediate_layers_indices = [i - 1 for i in vision.intermediate_layers_indices]
        kind = MllamaForConditionalGeneration
    model, info = kind.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def dense_twin(engine: Engine, folder: Path, source: Path) -> Path:
    """Write a checkpoint with dequantized matrices instead of the packed ones."""
    weights: dict[str, torch.Tensor] = {}
    for name, module in engine.network.named_modules():
        if isinstance(module, QuantizedLinear):
            weights[f"{name}.weight"] = dequantize(module.packed)
    for name, parameter in engine.network.named_parameters():
        if not name.rpartition(".")[2].startswith("weight_"):
            weights[name] = parameter.float()
    write_checkpoint(folder, weights, json.loads((source / "config.json").read_text()))
    for file in source.glob("*.json*"):
        if file.name != "config.json":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [128, 96, 40, 20, 5])
def test_packing_is_that_of_compressed_tensors(bits: int, inputs: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    half = 1 << (bits - 1)
    q = torch.randint(-half, half, (24, inputs), generator=torch.Generator().manual_seed(2)).to(torch.int8)
    words = pack(q, bits)
    assert torch.equal(words, pack_to_int32(q, bits))
    assert torch.equal(unpack_from_int32(words, bits, q.shape), q)
    assert torch.equal(unpack(PackedWeight(words, torch.ones(24, 1), (24, inputs), bits)), q.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", [Scheme(4, 128), Scheme(4, 32), Scheme(8, 0), Scheme(8, 64)], ids=str)
def test_values_are_those_of_compressed_tensors(scheme: Scheme, dtype: torch.dtype) -> None:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weight = torch.randn(48, 256, generator=torch.Generator().manual_seed(3)).to(dtype)
    packed = quantize_matrix(weight, scheme).weight
    state = {
        "weight_packed": packed.packed,
        "weight_scale": packed.scale,
        "weight_shape": torch.tensor(packed.shape),
    }
    strategy = {"strategy": "group", "group_size": scheme.group_size} if scheme.group_size else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=scheme.bits, symmetric=True, **strategy)
    theirs = PackedQuantizationCompressor.decompress(state, QuantizationScheme(targets=["Linear"], weights=args))
    assert torch.equal(theirs["weight"], dequantize(packed, dtype))


OPTIONS = {
    "4 bit": QuantizeOptions(Scheme(4, 128)),
    "4 bit, groups of 32": QuantizeOptions(Scheme(4, 32), "rtn"),
    "8 bit": QuantizeOptions(Scheme(8, 128)),
    "channel": QuantizeOptions(Scheme(4, 0)),
    "mixed": QuantizeOptions(Scheme(4, 64), keep=("layers.0.*",), bits_for=(("v_proj", 8), ("vision_model.*.fc1", 8))),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_transformers_loads_it_and_says_the_same(tmp_path: Path, options: QuantizeOptions) -> None:
    made = quantized(tmp_path, options)
    engine = load(made, device="cpu", dtype="float32", vision=True, exact=True)
    peer = transformers_of(made)
    packed = {n for n, m in engine.network.named_modules() if isinstance(m, QuantizedLinear)}
    theirs = {n for n, m in peer.named_modules() if getattr(m, "quantization_scheme", None) is not None}
    assert theirs == packed
    assert len(packed) > 20
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(4))
    row = [*ids(3), IMAGE, *ids(20, 1)]
    ours = engine.network(torch.tensor([row]), [pixels], [2])
    scale = ours.abs().max()
    torch.testing.assert_close(ours, peer_logits(peer, [row], [[(pixels, 2)]], IMAGE), rtol=0, atol=float(2e-5 * scale))
    twin = dense_twin(engine, tmp_path / "dense", tmp_path / "source")
    dense = load(twin, device="cpu", vision=True, exact=True)
    assert not any(isinstance(module, QuantizedLinear) for module in dense.network.modules())
    torch.testing.assert_close(
        ours, dense.network(torch.tensor([row]), [pixels], [2]), rtol=0, atol=float(1e-5 * scale)
    )


def test_transformers_loads_text_only_ones(tmp_path: Path) -> None:
    made = quantized(tmp_path, QuantizeOptions(Scheme(4, 64)), text_only_config(CONFIG))
    # write_checkpoint names the output layer as whole models do; a text-only file from transformers has lm_head.
    tensors = load_file(made / "model.safetensors")
    save_file(
        {n.removeprefix("language_model."): t for n, t in tensors.items()}, made / "model.safetensors", {"format": "pt"}
    )
    engine = load(made, device="cpu", dtype="float32", exact=True)
    row = ids(30)
    ours = engine.network(torch.tensor([row]))
    theirs = peer_logits(transformers_of(made), [row], [[]], IMAGE)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=float(2e-5 * ours.abs().max()))


def test_ignored_and_targeted_names_are_disjoint_and_no_parent_s(tmp_path: Path) -> None:
    """compressed-tensors takes the first match in alphabetical order, so no name may have two."""
    from compressed_tensors.utils.match import match_targets

    made = quantized(tmp_path, OPTIONS["mixed"])
    peer = transformers_of(made)
    declared = json.loads((made / "config.json").read_text())["quantization_config"]
    targets = [target for group in declared["config_groups"].values() for target in group["targets"]]
    for name, module in peer.named_modules():
        found = match_targets(name, module, targets)
        assert len(found) <= 1, name
        assert not found or isinstance(module, torch.nn.Linear), name


def test_patterns_match_the_older_layout_too(tmp_path: Path) -> None:
    """vLLM and older transformers call the same modules language_model.model.layers and vision_model."""
    from compressed_tensors.utils.match import match_name

    made = quantized(tmp_path, QuantizeOptions(Scheme(4, 128)))
    declared = json.loads((made / "config.json").read_text())["quantization_config"]
    targets = [target for group in declared["config_groups"].values() for target in group["targets"]]
    for name in ("language_model.model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj", "language_model.lm_head"):
        assert sum(match_name(name, target) for target in targets) == 1, name
    assert any(match_name("vision_model.transformer.layers.0.mlp.fc1", pattern) for pattern in declared["ignore"])
    assert any(match_name("model.vision_model.transformer.layers.0.mlp.fc1", p) for p in declared["ignore"])


def test_a_checkpoint_of_compressed_tensors_own_making_loads(tmp_path: Path) -> None:
    """W4A16 as llm-compressor writes it: quantized and saved by the package itself, read by us."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    source = make_checkpoint(tmp_path / "source", CONFIG)
    peer = transformers_of(source)
    ignore = ["re:.*lm_head", "re:.*multi_modal_projector.*", "re:.*vision_model.*"]
    config = QuantizationConfig(
        config_groups={"W4A16": ["Linear"]}, ignore=ignore, quantization_status="initialized", format="pack-quantized"
    )
    apply_quantization_config(peer, config)
    for module in peer.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            top = module.weight.unflatten(1, (-1, 128)).abs().amax(-1) / 7.5
            module.weight_scale.data = top
            module.quantization_status = "frozen"
    ModelCompressor.from_pretrained_model(peer).compress_model(peer)
    made = tmp_path / "theirs"
    tensors = {n: t for n, t in peer.state_dict().items() if not n.endswith("zero_point")}
    made.mkdir()
    for file in source.glob("*"):
        (made / file.name).write_bytes(file.read_bytes())
    save_file({n: t.contiguous() for n, t in tensors.items()}, made / "model.safetensors", {"format": "pt"})
    declared = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head", "multi_modal_projector", "re:vision_model.*"],
        "config_groups": {"group_0": {
            "targets": ["Linear"], "input_activations": None, "output_activations": None,
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128,
                        "actorder": None, "block_structure": None, "dynamic": False, "observer": "minmax",
                        "observer_kwargs": {}},
        }},
    }  # fmt: skip
    (made / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": declared}))
    engine = load(made, device="cpu", dtype="float32", vision=True, exact=True)
    assert isinstance(engine.network.get_submodule("model.language_model.layers.0.mlp.up_proj"), QuantizedLinear)
    assert not isinstance(engine.network.get_submodule("lm_head"), QuantizedLinear)
    # The list above speaks of older names: transformers 5 matches none of them, and wants them unanchored.
    (made / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": {**declared, "ignore": ignore}}))
    row = ids(20)
    theirs = peer_logits(transformers_of(made), [row], [[]], IMAGE)
    ours = engine.network(torch.tensor([row]))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=float(2e-5 * ours.abs().max()))
