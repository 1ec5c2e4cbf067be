"""Load quantized checkpoints: damage is named, and quantizing while loading gives the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mllama_cli.checkpoint.names import canonical
from mllama_cli.core.errors import CheckpointError, UsageError
from mllama_cli.core.events import Event, Notice
from mllama_cli.engine.engine import Engine, load
from mllama_cli.kernels.cpu.native import native
from mllama_cli.kernels.packed import PackedWeight, dequantize
from mllama_cli.quantization.plan import make_plan
from mllama_cli.quantization.policy import QuantizeOptions
from mllama_cli.quantization.schemes import Scheme
from tests.checkpoints import config_dict, make_checkpoint
from tests.quantization.running import FOUR, RELEASED, run, weights


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    run(make_plan(make_checkpoint(folder / "source"), FOUR), folder / "made")
    return folder / "made"


def damaged(packed: Path, folder: Path, ending: str, change: Any) -> tuple[Path, str]:
    """Copy a checkpoint and change one tensor of an MLP matrix; return the copy and the tensor's name."""
    folder.mkdir()
    for file in packed.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    name = f"language_model.model.layers.0.mlp.up_proj.{ending}"
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder, canonical(name)


def _set(value: float) -> Any:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[-1, -1] = value
        return tensor

    return change


DAMAGES: dict[str, tuple[str, Any]] = {
    "too few words": ("weight_packed", lambda t: t[:, :-1].contiguous()),
    "too few rows": ("weight_packed", lambda t: t[:-1].contiguous()),
    "words of another type": ("weight_packed", lambda t: t.float()),
    "no words": ("weight_packed", lambda t: None),
    "too few scales": ("weight_scale", lambda t: t[:, :1].repeat(1, 3)),
    "no scales": ("weight_scale", lambda t: None),
    "a scale NaN": ("weight_scale", _set(float("nan"))),
    "a scale infinite": ("weight_scale", _set(float("inf"))),
    "a scale zero": ("weight_scale", _set(0.0)),
    "a scale negative": ("weight_scale", _set(-0.01)),
    "another shape": ("weight_shape", lambda t: t.flip(0).contiguous()),
    "no shape": ("weight_shape", lambda t: None),
    "a shape of three": ("weight_shape", lambda t: torch.tensor([96, 64, 1])),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_packed_tensor_is_named_at_load(packed: Path, tmp_path: Path, kind: str) -> None:
    folder, name = damaged(packed, tmp_path / "damaged", *DAMAGES[kind])
    with pytest.raises(CheckpointError) as error:
        load(folder, device="cpu")
    assert name in error.value.message
    assert error.value.hint


def test_what_a_layer_is_is_read_off_its_tensors_whatever_config_json_says(packed: Path, tmp_path: Path) -> None:
    folder, _ = damaged(packed, tmp_path / "a", "weight_scale", lambda t: t)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    expected, found = load(packed, vision=True).network.state_dict(), load(folder, vision=True).network.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    plain = make_checkpoint(tmp_path / "b")
    (plain / "config.json").write_text((packed / "config.json").read_text())
    notices: list[Event] = []
    network = load(plain, progress=notices.append).network
    assert torch.equal(network.lm_head.weight, weights(plain)["lm_head.weight"])
    assert any(isinstance(event, Notice) and "compressed-tensors" in event.text for event in notices)


@pytest.mark.parametrize("on_load", ["int4", "int8"])
def test_quantizing_while_loading_is_rounding_to_nearest_with_the_same_defaults(
    source: Path, tmp_path: Path, on_load: str
) -> None:
    run(make_plan(source, QuantizeOptions(Scheme(int(on_load[-1]), 128), "rtn")), tmp_path / "made")
    stored = load(tmp_path / "made", device="cpu", vision=True).network.state_dict()
    made = load(source, device="cpu", vision=True, quantize=on_load).network.state_dict()
    assert stored.keys() == made.keys()
    assert all(torch.equal(stored[name], made[name]) for name in stored)
    matrix = PackedWeight(made["lm_head.weight_packed"], made["lm_head.weight_scale"], (264, 64), 8)
    torch.testing.assert_close(dequantize(matrix), weights(source)["lm_head.weight"], rtol=0, atol=0.01)


def test_while_loading_errors_are_named_too(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int3"):
        load(source, quantize="int3")
    folder = make_checkpoint(tmp_path / "bad", RELEASED)
    tensors = load_file(folder / "model.safetensors")
    tensors["language_model.model.layers.7.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.7\.mlp\.up_proj"):
        load(folder, device="cpu", quantize="int4")


def test_rows_that_people_add_to_the_vocabulary_are_cut_off(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "source")
    tensors = load_file(folder / "model.safetensors")
    head = tensors["language_model.lm_head.weight"]
    tensors["language_model.lm_head.weight"] = torch.cat((head, head[:8]))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    run(make_plan(folder, FOUR), tmp_path / "made")
    engine = load(tmp_path / "made", device="cpu")
    assert engine.network.lm_head.weight_packed.shape[0] == len(head)
    assert engine.network(torch.tensor([[1, 2, 3]])).shape[-1] == len(head)


def test_a_tied_output_layer_stays_the_embedding(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "source", config_dict({"tie_word_embeddings": True}))
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    run(make_plan(folder, FOUR), tmp_path / "made")
    engine = load(tmp_path / "made", device="cpu")
    table = engine.network.language_model.embed_tokens.weight
    assert torch.equal(engine.network.lm_head.weight, table[: len(engine.network.lm_head.weight)])


def test_two_engines_of_one_process_may_differ_in_exactness(packed: Path) -> None:
    ids = torch.randint(0, 256, (1, 20), generator=torch.Generator().manual_seed(1))

    def logits(engine: Engine) -> torch.Tensor:
        with torch.inference_mode():
            result: torch.Tensor = engine.network.lm_head(engine.network.language_model(ids))
        return result

    first = load(packed, device="cpu", dtype="float32")
    alone = logits(first)
    exact = load(packed, device="cpu", dtype="float32", exact=True)
    other = logits(exact)
    assert torch.equal(logits(first), alone), "the second engine's setting is its own"
    assert torch.equal(logits(exact), other)
    if native() is not None:
        assert not torch.equal(alone, other)
