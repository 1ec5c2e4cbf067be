"""Quantize checkpoints: the scheme of each matrix, and everything that stays unchanged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mllama_cli.checkpoint.names import canonical
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import CheckpointError, UsageError
from mllama_cli.core.events import Notice, QuantizeProgress, QuantizeSummary
from mllama_cli.engine.engine import load
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.quantization.plan import QuantizePlan, make_plan
from mllama_cli.quantization.policy import QuantizeOptions
from mllama_cli.quantization.rounding import quantize_matrix
from mllama_cli.quantization.schemes import Scheme
from tests.checkpoints import make_checkpoint, text_only_config
from tests.quantization.running import FOUR, RELEASED, run, weights


def bits_of(plan: QuantizePlan) -> dict[str, int]:
    return {name: scheme.bits for name, scheme in plan.layers.schemes.items()}


def test_every_matrix_is_what_the_rounding_gives_and_the_rest_is_untouched(source: Path, tmp_path: Path) -> None:
    plan = make_plan(source, FOUR)
    events = run(plan, tmp_path / "made")
    before, after = weights(source), weights(tmp_path / "made")
    for name, scheme in plan.layers.schemes.items():
        expected = quantize_matrix(before.pop(f"{name}.weight"), scheme).weight
        assert torch.equal(after.pop(f"{name}.weight_packed"), expected.packed)
        assert torch.equal(after.pop(f"{name}.weight_scale"), expected.scale)
        assert tuple(after.pop(f"{name}.weight_shape").tolist()) == expected.shape
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    progress = [event for event in events if isinstance(event, QuantizeProgress)]
    assert progress[-1].done == progress[-1].total == plan.size_before
    summary = events[-1]
    assert isinstance(summary, QuantizeSummary)
    assert summary.size_after == sum(file.stat().st_size for file in (tmp_path / "made").glob("*.safetensors"))
    assert {error.bits for error in summary.errors} == {4, 8}
    four = summary.errors[0]
    assert 0 < four.mean <= four.worst < 0.02
    assert four.worst_name in plan.layers.schemes


def test_other_files_are_copied(source: Path, tmp_path: Path) -> None:
    (source / "original.pth").write_bytes(b"not wanted")
    run(make_plan(source, FOUR), tmp_path / "made")
    names = {file.name for file in (tmp_path / "made").iterdir()}
    assert names == {
        "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "model.safetensors",
    }  # fmt: skip
    assert not list(tmp_path.glob("*.partial"))
    kept = json.loads((tmp_path / "made" / "config.json").read_text())
    del kept["quantization_config"]
    assert kept == json.loads((source / "config.json").read_text())


def test_shards_hold_what_one_file_holds(source: Path, tmp_path: Path) -> None:
    run(make_plan(source, FOUR), tmp_path / "one")
    plan = make_plan(source, FOUR, shard_bytes=100_000)
    run(plan, tmp_path / "many")
    files = list((tmp_path / "many").glob("model-*-of-*.safetensors"))
    assert len(files) == len(plan.shards) > 4
    one, many = weights(tmp_path / "one"), weights(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert not load(tmp_path / "many", device="cpu", vision=True).model.lacks(vision=True)


@pytest.mark.parametrize("layout", ["older", "newer"])
def test_either_key_layout_is_kept_and_loads(tmp_path: Path, layout: str) -> None:
    folder = make_checkpoint(tmp_path / "source")
    if layout == "newer":
        tensors = load_file(folder / "model.safetensors")
        save_file({canonical(name): t for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    run(make_plan(folder, FOUR), tmp_path / "made")
    heads = {
        name.split(".layers.")[0] for name in load_file(tmp_path / "made" / "model.safetensors") if ".mlp." in name
    }
    assert heads == (
        {"language_model.model", "vision_model.transformer", "vision_model.global_transformer"}
        if layout == "older"
        else {"model.language_model", "model.vision_model.transformer", "model.vision_model.global_transformer"}
    )
    engine = load(tmp_path / "made", device="cpu", vision=True)
    assert isinstance(engine.network.lm_head, QuantizedLinear)


def test_text_only_checkpoints(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "source", text_only_config())
    run(make_plan(folder, FOUR), tmp_path / "made")
    reply = load(tmp_path / "made", device="cpu").answer_batch([Conversation.ask("Hello")])
    assert reply[0].ids


def test_what_stays_high_in_a_model_of_40_layers(tmp_path: Path) -> None:
    plan = make_plan(make_checkpoint(tmp_path / "source", RELEASED), QuantizeOptions(Scheme(4, 32)))
    high = {name for name, bits in bits_of(plan).items() if bits == 8}
    layers = "model.language_model.layers"
    cross = {f"{layers}.{n}.cross_attn.o_proj" for n in (3, 8, 13, 18, 23, 28, 33, 38)}
    first = {f"{layers}.1.self_attn.{p}_proj" for p in "qkvo"} | {
        f"{layers}.1.mlp.{p}_proj" for p in ("gate", "up", "down")
    }
    assert high == {"lm_head", *cross, *first, f"{layers}.13.mlp.down_proj", f"{layers}.18.mlp.down_proj"}
    assert all(plan.layers.schemes[name].group_size == 0 for name in high)
    assert all("vision" in name or "projector" in name for name in plan.layers.kept)


def test_in_other_models_the_worst_matrices_stay_high(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "source")
    tensors = load_file(folder / "model.safetensors")
    spiky = "language_model.model.layers.2.mlp.down_proj.weight"
    for name, tensor in tensors.items():
        if (".layers.4." in name and name.startswith("language_model") and tensor.dim() == 2) or name == spiky:
            tensor[:, ::32] *= 30
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    high = {name for name, bits in bits_of(make_plan(folder, QuantizeOptions(Scheme(4, 32)))).items() if bits == 8}
    layers = "model.language_model.layers"
    whole = {f"{layers}.4.self_attn.{p}_proj" for p in "qkvo"} | {
        f"{layers}.4.mlp.{p}_proj" for p in ("gate", "up", "down")
    }
    cross = {f"{layers}.{n}.cross_attn.o_proj" for n in (1, 3)}
    assert high == {"lm_head", *cross, *whole, f"{layers}.2.mlp.down_proj"}


def test_with_8_bits_everything_has_the_same(source: Path) -> None:
    plan = make_plan(source, QuantizeOptions(Scheme(8, 32)))
    assert set(plan.layers.schemes.values()) == {Scheme(8, 32)}


def test_keep_and_bits_for(source: Path) -> None:
    options = QuantizeOptions(
        Scheme(4, 32),
        keep=("layers.0.*", "lm_head"),
        bits_for=(("down_proj", 8), ("*.cross_attn.o_proj", 4), ("vision_model.transformer.*.fc1", 8)),
    )
    plan = make_plan(source, options)
    bits = bits_of(plan)
    assert "lm_head" in plan.layers.kept
    assert not any(".layers.0." in name and "language" in name for name in bits)
    assert bits["model.language_model.layers.3.mlp.down_proj"] == 8
    assert plan.layers.schemes["model.language_model.layers.3.cross_attn.o_proj"] == Scheme(4, 32)
    towers = [name for name in bits if "vision" in name]
    assert len(towers) == 4
    assert all(name.endswith("fc1") for name in towers)


@pytest.mark.parametrize("pattern", ["nothing", "layers.99.*", "transformer.layers.0.*"])
def test_a_pattern_that_fits_nothing(source: Path, pattern: str) -> None:
    with pytest.raises(UsageError, match="No linear layer fits"):
        make_plan(source, QuantizeOptions(Scheme(4, 128), keep=(pattern,)))


def test_a_typo_in_a_pattern_gets_a_suggestion(source: Path) -> None:
    with pytest.raises(UsageError) as error:
        make_plan(source, QuantizeOptions(Scheme(4, 128), keep=("down_prjo",)))
    assert "Did you mean down_proj" in error.value.hint


def test_groups_that_do_not_divide_are_reported(source: Path, tmp_path: Path) -> None:
    notes = [event.text for event in run(make_plan(source, FOUR), tmp_path / "made") if isinstance(event, Notice)]
    assert any("do not divide 96 inputs" in note and "groups of 32" in note for note in notes)


def test_a_quantized_checkpoint_is_refused(source: Path, tmp_path: Path) -> None:
    run(make_plan(source, FOUR), tmp_path / "made")
    with pytest.raises(UsageError, match="quantized already"):
        make_plan(tmp_path / "made", FOUR)
    with pytest.raises(UsageError, match="quantized already"):
        load(tmp_path / "made", quantize="int4")


@pytest.mark.parametrize("name", ["mlp.up_proj.weight", "input_layernorm.weight"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path, name: str, bad: float) -> None:
    folder = make_checkpoint(tmp_path / "source", RELEASED)
    tensors = load_file(folder / "model.safetensors")
    name = f"language_model.model.layers.7.{name}"
    tensors[name].view(-1)[-1] = bad
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        run(make_plan(folder, FOUR), tmp_path / "made")
    assert name in error.value.message
    assert not (tmp_path / "made").exists()
