"""Loading weights: every layout, strict both ways, and a clear error for each way to be broken."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mllama_cli.checkpoint.names import canonical, hub_name
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import CheckpointError
from mllama_cli.core.events import LoadProgress
from mllama_cli.engine.engine import Engine, load
from tests.checkpoints import VOCABULARY, config_dict, make_checkpoint, random_network

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return engine.network.state_dict()


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_hub_layout_and_the_newer_one_load_alike(folder: Path) -> None:
    expected = random_network(config_dict()).state_dict()
    assert any(name.startswith("language_model.model.") for name in load_file(folder / WEIGHTS))
    assert same_weights(weights(load(folder, device="cpu", vision=True)), expected)
    rewrite(folder, lambda tensors: {canonical(name): tensor for name, tensor in tensors.items()})
    assert same_weights(weights(load(folder, device="cpu", vision=True)), expected)
    assert all(canonical(hub_name(name)) == name for name in expected)


def test_shards_load_as_one_file_does(tmp_path: Path) -> None:
    sharded = make_checkpoint(tmp_path / "sharded", shard_bytes=100_000)
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    assert same_weights(weights(load(sharded, device="cpu", vision=True)), random_network(config_dict()).state_dict())


def test_transformers_save_pretrained_loads(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.peers import transformers_model

    folder = make_checkpoint(tmp_path / "model")
    network = random_network(config_dict(), seed=5)
    (folder / WEIGHTS).unlink()
    transformers_model(config_dict(), network).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["vision_config"]["intermediate_layers_indices"] = [1, 3]  # the peer's are shifted, to follow Meta
    (folder / "config.json").write_text(json.dumps(settings))
    engine = load(folder, device="cpu", vision=True)
    assert same_weights(weights(engine), network.state_dict())
    assert engine.config.text_config.rope_scaling.original_max_position_embeddings == 64


def test_our_checkpoints_load_in_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.MllamaForConditionalGeneration.from_pretrained(folder)
    assert same_weights(dict(peer.state_dict()), random_network(config_dict()).state_dict())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of mappings")
def test_weights_are_mapped_not_copied(folder: Path) -> None:
    engine = load(folder, device="cpu", vision=True)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder / WEIGHTS) in line]
    ranges = [tuple(int(edge, 16) for edge in line[0].split("-")) for line in lines]
    for name, parameter in engine.network.named_parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in ranges), f"{name} is a copy"


def test_loading_tells_its_progress(folder: Path) -> None:
    events: list[LoadProgress] = []
    load(folder, device="cpu", vision=True, progress=events.append)  # type: ignore[arg-type]
    assert events[0].done == 0
    assert events[-1].done == events[-1].total > 100_000
    assert [e.done for e in events] == sorted(e.done for e in events)


def test_an_enlarged_lm_head_loads_and_its_rows_are_never_sampled(folder: Path) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        head = tensors["language_model.lm_head.weight"]
        return {**tensors, "language_model.lm_head.weight": torch.cat((head, head.sum(0, keepdim=True) * 100))}

    plain = answer(load(folder, device="cpu"))
    rewrite(folder, enlarge)
    engine = load(folder, device="cpu")
    assert engine.network.lm_head.weight.shape[0] == VOCABULARY
    assert answer(engine) == plain


def answer(engine: Engine) -> str:
    return engine.answer_batch([Conversation.ask("Hello")])[0].text[:20]


def test_tied_embeddings_need_no_lm_head(tmp_path: Path) -> None:
    config = config_dict(text={"tie_word_embeddings": True})
    folder = make_checkpoint(tmp_path / "tied", config)
    rewrite(folder, lambda t: {name: tensor for name, tensor in t.items() if "lm_head" not in name})
    engine = load(folder, device="cpu")
    table = engine.network.language_model.embed_tokens.weight
    assert torch.equal(engine.network.lm_head.weight, table[:VOCABULARY])


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def other_format(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"language_model.lm_head.weight": "model-00002-of-00002.safetensors", "x": WEIGHTS}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def wrong_shape(folder: Path) -> None:
    rewrite(folder, lambda t: {**t, "language_model.model.norm.weight": torch.ones(63)})


def weight_missing(folder: Path) -> None:
    rewrite(
        folder, lambda t: {name: tensor for name, tensor in t.items() if name != "language_model.model.norm.weight"}
    )


def weight_unknown(folder: Path) -> None:
    rewrite(folder, lambda t: {**t, "language_model.model.extra.weight": torch.ones(3)})


def integer_weights(folder: Path) -> None:
    name = "language_model.model.norm.weight"
    rewrite(folder, lambda t: {**t, name: t[name].to(torch.int32)})


def header_corrupt(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[8:12] = b"\x00\xff\x00\xff"
    (folder / WEIGHTS).write_bytes(data)


def header_length_absurd(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[:8] = b"\xff" * 8
    (folder / WEIGHTS).write_bytes(data)


def file_truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def file_empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def tokenizer_missing(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def tokenizer_corrupt(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def preprocessor_missing(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def config_corrupt(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def other_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')


def impossible_heads(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config_dict(text={"num_key_value_heads": 3})))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (no_weights, "no weights"),
        (other_format, "pytorch_model.bin"),
        (missing_shard, "model-00002-of-00002.safetensors"),
        (wrong_shape, "model.language_model.norm.weight has shape [63], config.json asks for [64]"),
        (weight_missing, "lacks weights: model.language_model.norm.weight"),
        (weight_unknown, "unknown weights: model.language_model.extra.weight"),
        (integer_weights, "I32"),
        (header_corrupt, "header"),
        (header_length_absurd, "header"),
        (file_truncated, "cut short"),
        (file_empty, WEIGHTS),
        (tokenizer_missing, "tokenizer.json"),
        (tokenizer_corrupt, "tokenizer.json"),
        (preprocessor_missing, "preprocessor_config.json"),
        (config_corrupt, "config.json"),
        (other_architecture, "'llama'"),
        (impossible_heads, "4 attention heads"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_folder_is_one_clear_error(folder: Path, damage: Callable[[Path], None], named: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load(folder, device="cpu", vision=True)
    assert named in caught.value.message
    assert "\n" not in caught.value.message
