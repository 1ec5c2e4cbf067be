"""A checkpoint's files are strangers' input: each is read, or refused in one clear line, within limits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mllama_cli.checkpoint.header import read_header
from mllama_cli.core.config import GenerationConfig, ImageProcessorConfig, MllamaConfig
from mllama_cli.core.errors import CheckpointError, TemplateError
from mllama_cli.engine.engine import load
from mllama_cli.hub.catalog import resolve
from mllama_cli.processing.chat_template import ChatTemplate
from mllama_cli.processing.prepared import read_image_config
from mllama_cli.processing.tokenizer import MllamaTokenizer
from tests.checkpoints import (
    byte_tokenizer,
    config_dict,
    make_checkpoint,
    write_json,
    write_preprocessor,
    write_tokenizer,
)

ODD = ("x", [], [1], {}, {"a": 1}, True, 1.5, -1, 10**18, 10**400, float("nan"), float("inf"), "9" * 5000)
PREPROCESSOR = {"size": {"height": 56, "width": 56}, "max_image_tiles": 4, "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3, "rescale_factor": 0.1}  # fmt: skip
READERS: list[tuple[Any, dict[str, Any]]] = [
    (MllamaConfig.from_dict, config_dict()),
    (GenerationConfig.from_dict, {"temperature": 0.6, "top_k": 5, "eos_token_id": [1], "do_sample": True}),
    (ImageProcessorConfig.from_dict, PREPROCESSOR),
]


def variants(data: Any, odd: Any) -> Any:
    """Yield the data with each entry, at any depth, replaced."""
    for key, value in data.items():
        yield {**data, key: odd}
        if isinstance(value, dict):
            for inner in variants(value, odd):
                yield {**data, key: inner}


@pytest.mark.parametrize("reader", range(len(READERS)))
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:12])
def test_a_wrong_type_or_size_is_read_or_one_short_line(reader: int, odd: Any) -> None:
    read, good = READERS[reader]
    read(good)
    for data in variants(good, odd):
        try:
            read(data)
        except CheckpointError as error:
            assert len(error.message) < 400  # noqa: PT017
            assert "\n" not in error.message  # noqa: PT017


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings"])
def test_absurd_sizes_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"text_config: {name} must be from 1 to"):
        MllamaConfig.from_dict(config_dict(text={name: 10**9}))


def test_layers_are_compared_before_the_network_is_built(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    write_json(folder / "config.json", config_dict(text={"num_hidden_layers": 900}))
    with pytest.raises(CheckpointError, match=r"5 layers of language_model, config.json asks for 900"):
        load(folder, device="cpu")


@pytest.mark.parametrize("rows", [0, 1, 8, 9])
def test_a_resized_vocabulary_has_the_rows_of_the_file(tmp_path: Path, rows: int) -> None:
    config = config_dict()
    folder = make_checkpoint(tmp_path / "model", config)
    tensors = load_file(folder / "model.safetensors")
    name = "language_model.model.embed_tokens.weight"
    most = config["image_token_index"] + 1
    tensors[name] = torch.cat((tensors[name], tensors[name]))[: most + rows].clone()
    save_file(tensors, folder / "model.safetensors")
    load(folder, device="cpu")
    tensors[name] = tensors[name][: most - 1].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="embed_tokens"):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "named"),
    [({"size": {"shortest_edge": 560}}, "shortest_edge"), ({"max_image_tiles": 9}, "9 tiles"),
     ({"size": {"height": 28, "width": 28}}, "28 pixels"), ({"max_image_tiles": 10**9}, "max_image_tiles"),
     ({"rescale_factor": float("inf")}, "rescale_factor must be from"), ({"rescale_factor": float("nan")}, "not nan"),
     ({"rescale_factor": 0}, "rescale_factor"), ({"image_std": [1e-46, 1, 1]}, "image_std must be from"),
     ({"image_mean": [0, float("nan"), 0]}, "image_mean"), ({"image_std": 0.5}, "image_std")],
)  # fmt: skip
def test_the_preprocessor_must_fit_the_vision_tower(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    write_json(tmp_path / "config.json", config_dict())
    write_preprocessor(tmp_path, 56)
    read_image_config(tmp_path)
    write_json(tmp_path / "preprocessor_config.json", {**PREPROCESSOR, **change})
    with pytest.raises(CheckpointError, match=named):
        read_image_config(tmp_path)


@pytest.mark.parametrize(
    ("entries", "size", "named"),
    [([(0, 8), (4, 12)], 12, "overlaps"), ([(0, 8), (12, 20)], 20, "no tensor"), ([(0, 8)], 20, "12 bytes at its end")],
)  # fmt: skip
def test_tensors_fill_their_file(tmp_path: Path, entries: list[tuple[int, int]], size: int, named: str) -> None:
    header = {str(n): {"dtype": "F32", "shape": [2], "data_offsets": pair} for n, pair in enumerate(entries)}
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    with pytest.raises(CheckpointError, match=named):
        read_header(tmp_path / "x")


def test_a_huge_shape_or_name_is_shortened(tmp_path: Path) -> None:
    text = json.dumps({"n" * 100_000: {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(CheckpointError) as caught:
        read_header(tmp_path / "x")
    assert len(caught.value.message) < 400


HOSTILE_TEMPLATES = [
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",  # noqa: E501
    "{{ 'a' * 3000000000 }}", "{{ 'a'.center(3000000000) }}", "{{ '%0999999999d' % 1 }}", "{{ 10 ** 10000000 }}",
    "{{ [0] * 300000000 }}", "{{ [1] | tojson(indent=10000000) }}", "{{ lipsum(n=100000) }}", "{{ 'x' * 9000000 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% break %}", "{{ '' }}", "{{" + "(" * 5000 + "}}",
]  # fmt: skip


@pytest.mark.parametrize("source", HOSTILE_TEMPLATES, ids=lambda source: source[:30])
def test_a_template_cannot_take_all_time_or_memory(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source, seconds=1).render([{"role": "user", "content": "x"}])
    assert "\n" not in caught.value.message


def test_a_template_works_again_after_a_failure() -> None:
    template = ChatTemplate("{% for n in range(messages[0].content | int) %}{{ n }}{{ 1 / (n - 3) }}{% endfor %}")
    with pytest.raises(TemplateError):
        template.render([{"content": "9"}])
    assert template.render([{"content": "1"}]).startswith("0-0.33")


def test_transformers_generation_tag_and_a_byte_order_mark(tmp_path: Path) -> None:
    source = "\ufeff{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
    template = ChatTemplate.from_pretrained(tmp_path)
    assert template is not None
    assert template.render([{"content": "é"}]) == "é"
    (tmp_path / "chat_template.jinja").write_bytes("é".encode("latin-1"))
    with pytest.raises(CheckpointError, match="not UTF-8"):
        ChatTemplate.from_pretrained(tmp_path)


def changed_tokenizer(folder: Path, **changes: Any) -> MllamaTokenizer:
    write_tokenizer(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"].update(changes.pop("model", {}))
    write_json(folder / "tokenizer.json", {**data, **changes})
    return MllamaTokenizer.from_pretrained(folder)


def test_truncation_padding_and_dropout_are_switched_off(tmp_path: Path) -> None:
    plain = changed_tokenizer(tmp_path).encode("How many red circles?")
    padding = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "x"}  # fmt: skip
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    for changes in ({"truncation": cut}, {"padding": padding}, {"model": {"dropout": 0.5}}):
        assert changed_tokenizer(tmp_path, **changes).encode("How many red circles?") == plain


@pytest.mark.parametrize(
    "changes",
    [{"normalizer": {"type": "Prepend", "prepend": "x" * 1000}}, {"model": {"continuing_subword_prefix": "日"}},
     {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}}, {"model": {"type": "WordPiece"}},
     {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
     {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}}],
)  # fmt: skip
def test_other_parts_of_a_tokenizer_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        changed_tokenizer(tmp_path, **changes)


def test_ids_beyond_the_embedding_are_refused(tmp_path: Path) -> None:
    tokenizer = changed_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="token ids up to"):
        tokenizer.require_below(100)


@pytest.mark.parametrize("source", ["special_tokens_map.json", "config.json", "generation_config.json"])
def test_begin_of_text_without_tokenizer_config(tmp_path: Path, source: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert MllamaTokenizer.from_pretrained(tmp_path).require_bos() == "<|begin_of_text|>"
    id_ = byte_tokenizer().token_to_id("<|eot_id|>")
    write_json(tmp_path / source, {"bos_token": {"content": "<|eot_id|>"}, "bos_token_id": id_})
    assert MllamaTokenizer.from_pretrained(tmp_path).require_bos() == "<|eot_id|>"


@pytest.mark.parametrize(
    ("files", "named"),
    [(["adapter_config.json"], "LoRA adapter"), (["x.gguf"], "GGUF"), (["params.json", "consolidated.00.pth"], "Meta"),
     (["pytorch_model.bin"], "pytorch_model.bin, a pickle"), (["x.uqff"], "UQFF"), ([], "without config.json")],
)  # fmt: skip
def test_a_folder_of_another_kind_is_named(tmp_path: Path, files: list[str], named: str) -> None:
    for file in files:
        (tmp_path / file).write_text("{}")
    with pytest.raises(CheckpointError, match=named):
        resolve(str(tmp_path))
