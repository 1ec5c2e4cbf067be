"""Headers of safetensors files, and the index of several."""

import base64
import json
import struct
from pathlib import Path

import torch
from hypothesis import strategies as st

from mllama_cli.checkpoint.adapters.adapter import Adapter
from mllama_cli.checkpoint.files import INDEX_FILE, other_layout, weight_files
from mllama_cli.checkpoint.header import read_header
from mllama_cli.checkpoint.meta.pickled import read_pickled
from mllama_cli.checkpoint.meta.vocabulary import merges_of, read_ranks
from mllama_cli.checkpoint.reader import CheckpointReader
from mllama_cli.hub.inspect import inspect
from tests.checkpoints import config_dict, write_json
from tests.fuzz.conftest import Fuzz
from tests.fuzz.inputs import changed, damaged

HEADER = {
    "__metadata__": {"format": "pt"},
    "language_model.model.layers.0.w.weight_packed": {"dtype": "I32", "shape": [2, 1], "data_offsets": [0, 8]},
    "language_model.model.layers.0.w.weight_shape": {"dtype": "I64", "shape": [2], "data_offsets": [8, 24]},
    "language_model.model.layers.0.w.weight_scale": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [24, 28]},
    "vision_model.w": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [28, 32]},
}
ADAPTER_HEADER = {
    "base_model.model.model.layers.0.w.lora_A.weight": {"dtype": "BF16", "shape": [1, 4], "data_offsets": [0, 8]},
    "base_model.model.model.layers.0.w.lora_B.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [8, 16]},
    "base_model.model.model.layers.0.w.lora_B.bias": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]},
    "base_model.model.model.norm.weight": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
}
ADAPTER = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "alpha_pattern": {"layers.0.w": 3}, "use_rslora": True}
INDEX = {"metadata": {"total_size": 32}, "weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}


def file_with(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + struct.pack("<4Q", 0, 2, 8, 0)


def test_a_header(fuzz: Fuzz, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", config_dict())
    file = tmp_path / "model.safetensors"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        for info in read_header(file).values():
            assert 8 <= info.start <= info.end <= len(data)
        inspect(tmp_path)
        CheckpointReader(tmp_path)

    read(file_with(HEADER))
    fuzz(read, changed(HEADER).map(file_with) | damaged([file_with(HEADER)]))


def test_an_index(fuzz: Fuzz, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(file_with(HEADER))

    def read(data: bytes) -> None:
        (tmp_path / INDEX_FILE).write_bytes(data)
        for file in weight_files(tmp_path):
            assert file.exists()
        CheckpointReader(tmp_path)

    good = json.dumps(INDEX).encode()
    read(good)
    fuzz(read, changed(INDEX).map(lambda value: json.dumps(value).encode()) | damaged([good]))


def test_the_description_of_an_adapter(fuzz: Fuzz, tmp_path: Path) -> None:
    def read(data: bytes) -> None:
        (tmp_path / "adapter_config.json").write_bytes(data)
        what = other_layout(tmp_path)
        assert what is not None
        assert len(what[0]) < 400

    fuzz(read, st.binary(max_size=30) | changed({"base_model_name_or_path": "x"}).map(lambda v: json.dumps(v).encode()))


def test_an_adapter(fuzz: Fuzz, tmp_path: Path) -> None:
    shapes = {"model.layers.0.w.weight": (2, 4), "model.layers.0.w.bias": (2,), "model.norm.weight": (2,)}

    def read(files: tuple[bytes, bytes]) -> None:
        (tmp_path / "adapter_config.json").write_bytes(files[0])
        (tmp_path / "adapter_model.safetensors").write_bytes(files[1])
        assert Adapter(tmp_path).fitted(shapes)

    config, header = json.dumps(ADAPTER).encode(), file_with(ADAPTER_HEADER)
    read((config, header))
    fuzz(
        read,
        changed(ADAPTER).map(lambda value: (json.dumps(value).encode(), header))
        | changed(ADAPTER_HEADER).map(lambda value: (config, file_with(value)))
        | damaged([header]).map(lambda data: (config, data)),
    )


def test_a_pickled_file(fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / "consolidated.pth"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        for tensor in read_pickled(file).values():
            assert 0 <= tensor.start <= tensor.start + tensor.nbytes <= len(data)

    torch.save({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, file)
    good = file.read_bytes()
    read(good)
    fuzz(read, damaged([good]))


def test_a_list_of_ranks(fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        assert len(merges_of(read_ranks(file))) < len(data)

    good = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)) + b"AAA= 256\n"
    read(good)
    fuzz(read, damaged([good]))
