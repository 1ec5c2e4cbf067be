"""`mllama import` of Meta's own files: the same weights, Meta's own logits, and what is damaged is named."""

import base64
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mllama_cli.checkpoint.meta.model_files import meta_files
from mllama_cli.checkpoint.meta.names import TABLES
from mllama_cli.checkpoint.meta.vocabulary import byte_characters, merges_of, special_tokens
from mllama_cli.checkpoint.names import canonical
from mllama_cli.core.config import ASPECT_RATIOS, MllamaConfig
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.quantization.meta_import import meta_plan
from mllama_cli.quantization.quantize import quantize
from tests.checkpoints import config_dict, random_network
from tests.console import Result, run_here
from tests.meta_files import write_meta_files

GOLDEN = Path(__file__).parents[1] / "golden" / "meta-tiny"
CONFIG = config_dict(
    {"vocab_size": 512, "cross_attention_layers": [0, 3]},
    {
        "hidden_size": 64,
        "attention_heads": 16,
        "num_hidden_layers": 32,
        "intermediate_layers_indices": [3, 7, 15, 23, 30],
    },
    image_token_index=512,
)
"""A small model with what Meta's code fixes: heads and tapped layers of the vision tower."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Return random weights. As in Meta's files, a tile's row in a table depends on its place, not on the canvas."""
    found = {name: parameter.detach() for name, parameter in random_network(CONFIG, 11).named_parameters()}
    for name in TABLES.values():
        by_ratio = found[name].unflatten(1, (4, -1))
        places = torch.randn(4, 4, by_ratio.shape[2])
        for number, (high, wide) in enumerate(ASPECT_RATIOS, start=1):
            by_ratio[number, : high * wide] = places[:high, :wide].flatten(0, 1)
    return found


def stored(folder: Path) -> dict[str, Tensor]:
    return {canonical(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_golden_model_gives_metas_logits(tmp_path: Path, shards: int) -> None:
    raw = json.loads((GOLDEN / "config.json").read_text())
    folder = write_meta_files(tmp_path / "meta", stored(GOLDEN), raw, shards=shards)
    plan = meta_plan(meta_files(folder), 16, MllamaConfig.from_dict(raw).vision_config)
    for _ in quantize(plan, tmp_path / "made"):
        pass
    assert_same(stored(tmp_path / "made"), stored(GOLDEN))
    config = MllamaConfig.from_dict(json.loads((tmp_path / "made" / "config.json").read_text()))
    network = MllamaForConditionalGeneration(config).requires_grad_(False)
    network.load_state_dict(stored(tmp_path / "made"), strict=True)
    cases, tensors = json.loads((GOLDEN / "cases.json").read_text())["cases"], load_file(GOLDEN / "cases.safetensors")
    for name in "ac":
        images = cases[name]["images"]
        pixels = [tensors[image["pixel_values"]] for image in images]
        ids = torch.tensor([cases[name]["prompt_token_ids"]])
        logits = network(ids, pixels, [image["aspect_ratio_id"] for image in images])[0]
        assert (logits - tensors[f"{name}.logits"]).abs().max() < 5e-5


def test_it_is_a_model_that_answers(weights: dict[str, Tensor], tmp_path: Path, home: Path) -> None:
    folder = write_meta_files(tmp_path / "Llama3.2-11B-Vision-Instruct", weights, CONFIG, shards=2)
    result = run_here("import", str(folder), "--device", "cpu")
    made = home / "models" / "Llama3.2-11B-Vision-Instruct"
    assert (result.code, result.out) == (0, f"{made}\n"), result.err
    assert "2 parts" in result.err
    assert_same(stored(made), weights)
    answer = run_here(
        *("chat", "-m", made.name, "--device", "cpu", "--max-tokens", "4", "-i", str(GOLDEN / "pair.png"), "What?"),
        stdin=b"",
    )
    assert answer.code == 0, answer.err
    small = run_here("import", str(folder), "--bits", "4", "--device", "cpu")
    assert (small.code, small.out) == (0, f"{made}-int4\n"), small.err


def test_a_base_model_gets_no_template(weights: dict[str, Tensor], tmp_path: Path, home: Path) -> None:
    folder = write_meta_files(tmp_path / "Llama3.2-11B-Vision", weights, CONFIG)
    result = run_here("import", str(folder), "mine", "--device", "cpu")
    assert result.code == 0, result.err
    assert "base model" in result.err
    assert "base" in run_here("list").out
    assert not list((home / "models" / "mine").glob("chat_template*"))


def test_a_folder_of_metas_named_as_a_model_says_what_to_do(weights: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_meta_files(tmp_path / "meta", weights, CONFIG)
    result = run_here("chat", "-m", str(folder), "Hi", stdin=b"")
    assert (result.code, result.out) == (1, "")
    assert f"`mllama import {folder}`" in result.err


class Harmful:
    """What would run a program when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harmed"),)


def cut_short(folder: Path) -> None:
    data = (folder / "consolidated.00.pth").read_bytes()
    (folder / "consolidated.00.pth").write_bytes(data[: len(data) // 2])


def repacked(folder: Path, compression: int, pickled: bytes | None = None) -> None:
    """Write a weight file again, compressed or with another pickle."""
    file = folder / "consolidated.00.pth"
    with zipfile.ZipFile(file) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, pickled if pickled is not None and name.endswith(".pkl") else data)


def nested_key() -> bytes:
    """Return a pickle of a dictionary whose key is a tuple of 2 ** 60 leaves, in 60 tuples."""
    nested: Any = (None,)
    for _ in range(60):
        nested = (nested, nested)
    return b"\x80\x02}" + pickle.dumps(nested, 2)[2:-1] + b"K\x01s."


def many_parts(folder: Path) -> None:
    """Write an archive with a directory of 12 MB."""
    with zipfile.ZipFile(folder / "consolidated.00.pth", "w") as archive:
        for number in range(60_000):
            archive.writestr(f"archive/{number:0150d}", b"")


def params(folder: Path, **values: Any) -> None:
    file = folder / "params.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def resaved(folder: Path, change: Any) -> None:
    file = folder / "consolidated.00.pth"
    tensors = torch.load(file, weights_only=True)
    change(tensors)
    torch.save(tensors, file)


@pytest.fixture(scope="module")
def whole(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return files of which each test damages a copy."""
    return write_meta_files(tmp_path_factory.mktemp("whole") / "meta", weights, CONFIG, shards=2)


def assert_refused(result: Result, *words: str) -> None:
    assert (result.code, result.out) in ((1, ""), (2, "")), result.err
    lines = [line for line in result.error_lines if not line.startswith("Reading")]
    assert len(lines) == 2, result.err
    for word in words:
        assert word in result.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut_short, ("is not a sound file", "cut short")),
        (lambda folder: repacked(folder, zipfile.ZIP_DEFLATED), ("is compressed",)),
        (lambda folder: repacked(folder, zipfile.ZIP_STORED, pickle.dumps(Harmful(), 2)), ("plain weights",)),
        (lambda folder: repacked(folder, zipfile.ZIP_STORED, pickle.dumps([1], 2)), ("weights by name",)),
        (lambda folder: repacked(folder, zipfile.ZIP_STORED, pickle.dumps({}, 4)), ("pickle uses",)),
        (lambda folder: repacked(folder, zipfile.ZIP_STORED, b"\x80\x02}"), ("cut short, or is none",)),
        (
            lambda folder: repacked(folder, zipfile.ZIP_STORED, b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
            ("bytearray",),
        ),
        (lambda folder: repacked(folder, zipfile.ZIP_STORED, nested_key()), ("a tuple is in it several times",)),
        (many_parts, ("cut short, or was made",)),
        (lambda folder: resaved(folder, lambda t: t.update(x=3)), ("'x' is not a tensor",)),
        (lambda folder: resaved(folder, lambda t: t.update(x=torch.zeros(2))), ("unknown weights: x",)),
        (lambda folder: resaved(folder, lambda t: t.pop("text_model.norm.weight")), ("lacks weights", "norm.weight")),
        (
            lambda folder: resaved(folder, lambda t: t.update({"text_model.norm.weight": torch.zeros(3)})),
            ("text_model.norm.weight has shape [3]", "asks for [64]"),
        ),
        (lambda folder: (folder / "consolidated.01.pth").rename(folder / "consolidated.02.pth"), ("consolidated.01",)),
        (lambda folder: (folder / "consolidated.01.pth").unlink(), ("has shape",)),
        (lambda folder: (folder / "params.json").write_text("["), ("not valid JSON",)),
        (lambda folder: params(folder, dim="64"), ("dim is '64'",)),
        (lambda folder: params(folder, n_layers=900), ("has 3 layers, params.json says 900",)),
        (lambda folder: params(folder, use_scaled_rope=False), ("use_scaled_rope is False",)),
        (lambda folder: (folder / "tokenizer.model").unlink(), ("lacks tokenizer.model",)),
        (lambda folder: (folder / "tokenizer.model").write_text("AA== 0\n!! 1\n"), ("line 2",)),
        (lambda folder: (folder / "tokenizer.model").write_text("AA== 0\n"), ("a byte is not in it",)),
        (lambda folder: (folder / "params.json").unlink(), ("no consolidated.*.pth with its params.json",)),
    ],
)
def test_what_is_damaged_is_named(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, words: Any
) -> None:
    folder = shutil.copytree(whole, tmp_path / "meta")
    change(folder)
    monkeypatch.chdir(tmp_path)
    assert_refused(run_here("import", str(folder), "--device", "cpu"), *words)
    assert not (tmp_path / "harmed").exists()


def test_the_released_tokenizer_comes_out_of_its_ranks(shared: Path) -> None:
    """Build tokenizer.model from the released tokenizer.json, and its merges and special tokens from that again."""
    raw = json.loads((shared / "llama-3.2-11b-vision-instruct" / "tokenizer.json").read_text())
    of = {character: byte for byte, character in enumerate(byte_characters())}
    tokens = [
        bytes(of[each] for each in token) for token in sorted(raw["model"]["vocab"], key=raw["model"]["vocab"].get)
    ]
    assert all(base64.b64decode(base64.b64encode(token)) == token for token in tokens[:1000])
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in raw["model"]["merges"]]
    characters = byte_characters()
    ours = [tuple("".join(characters[byte] for byte in part) for part in pair) for pair in merges_of(tokens)]
    assert ours == merges
    released = {token["content"]: token["id"] for token in raw["added_tokens"]}
    assert {**special_tokens(len(tokens)), "<|image|>": 128256} == released
