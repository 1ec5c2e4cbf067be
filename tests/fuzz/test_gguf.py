"""GGUF headers, and the manifests of ollama's models."""

import json
import struct
from pathlib import Path

import pytest

from mllama_cli.checkpoint.gguf.config import gguf_config
from mllama_cli.checkpoint.gguf.header import read_gguf
from mllama_cli.checkpoint.gguf.vocabulary import gguf_vocabulary
from mllama_cli.hub.ollama_store import importable, ollama_model
from tests.fuzz.conftest import Fuzz
from tests.fuzz.inputs import changed, damaged


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header() -> bytes:
    numbers = {"embedding_length": 32, "block_count": 2, "attention.head_count": 2, "attention.head_count_kv": 1}
    entries = [text("general.architecture") + struct.pack("<I", 8) + text("mllama")]
    entries += [text(f"mllama.{name}") + struct.pack("<II", 4, value) for name, value in numbers.items()]
    entries.append(text("mllama.attention.cross_attention_layers") + struct.pack("<IIQi", 9, 5, 1, 1))
    entries.append(text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("gpt2"))
    entries.append(text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("<|eot_id|>"))
    entries.append(text("tokenizer.ggml.token_type") + struct.pack("<IIQ2i", 9, 5, 2, 1, 3))
    names = ("token_embd.weight", "output.weight")
    tensors = [text(name) + struct.pack("<IQQIQ", 2, 32, 2, 8, 96 * number) for number, name in enumerate(names)]
    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    return data + bytes(-len(data) % 32 + 96 + 68)


def test_a_gguf_header(fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        found = read_gguf(file)
        assert all(0 < tensor.start < tensor.end <= len(data) for tensor in found.tensors.values())
        gguf_config([found])
        gguf_vocabulary(found.entries, "x.gguf")

    read(header())
    fuzz(read, damaged([header()]))


def test_a_manifest_of_ollamas(fuzz: Fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    digest = "0" * 64
    blob = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": 26}
    manifest = {"schemaVersion": 2, "config": blob, "layers": [blob]}
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / f"sha256-{digest}").write_text('{"model_family": "mllama"}')
    place = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "x"
    place.mkdir(parents=True)

    def read(data: bytes) -> None:
        (place / "latest").write_bytes(data)
        for found in importable():
            assert all(file.parent == tmp_path / "blobs" for file in found.files)
        ollama_model("ollama:x")

    good = json.dumps(manifest).encode()
    read(good)
    assert [found.name for found in importable()] == ["x"]
    fuzz(read, changed(manifest).map(lambda value: json.dumps(value).encode()) | damaged([good]))
