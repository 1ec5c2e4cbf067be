"""The JSON files of a checkpoint folder, and what the commands that only look at it make of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mllama_cli.core.config import GenerationConfig, MllamaConfig
from mllama_cli.hub.catalog import resolve
from mllama_cli.hub.kinds import is_mllama, kind
from mllama_cli.processing.chat_template import ChatTemplate
from mllama_cli.processing.prepared import read_image_config
from mllama_cli.system.json_file import read_json
from tests.checkpoints import config_dict, text_only_config, write_json, write_preprocessor
from tests.fuzz.conftest import Fuzz
from tests.fuzz.inputs import changed, damaged

GROUPS = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head", "re:.*vision.*"],
    "config_groups": {"g": {"targets": ["Linear", "re:.*proj$"], "weights": {
        "num_bits": 4, "group_size": 32, "type": "int", "symmetric": True, "strategy": "group", "dynamic": False}}},
}  # fmt: skip
PREPROCESSOR = {"size": {"height": 56, "width": 56}, "max_image_tiles": 4, "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3, "rescale_factor": 0.1}  # fmt: skip
GENERATION = {"temperature": 0.6, "top_p": 0.9, "top_k": 5, "eos_token_id": [1, 2], "do_sample": True}
TOKENIZER = {"chat_template": [{"name": "default", "template": "{{ messages }}"}], "bos_token": {"content": "x"}}


def read_config(folder: Path) -> None:
    assert isinstance(kind(folder), str)
    is_mllama(folder)
    resolve(str(folder))
    MllamaConfig.from_dict(read_json(folder / "config.json"))


READERS: dict[str, tuple[str, Any, Callable[[Path], object]]] = {
    "config": ("config.json", config_dict(), read_config),
    "quantized": ("config.json", {**config_dict(), "quantization_config": GROUPS}, read_config),
    "text only": ("config.json", text_only_config(), read_config),
    "generation": (
        "generation_config.json",
        GENERATION,
        lambda folder: GenerationConfig.from_dict(read_json(folder / "generation_config.json")),
    ),
    "preprocessor": ("preprocessor_config.json", PREPROCESSOR, read_image_config),
    "template": ("tokenizer_config.json", TOKENIZER, ChatTemplate.from_pretrained),
    "template kind": ("tokenizer_config.json", TOKENIZER, kind),
}


@pytest.mark.parametrize("name", READERS)
def test_json_of_a_checkpoint(name: str, fuzz: Fuzz, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", config_dict())
    write_preprocessor(tmp_path, 56)
    file, good, read = READERS[name]

    def attempt(data: bytes) -> None:
        (tmp_path / file).write_bytes(data)
        read(tmp_path)

    sound = json.dumps(good).encode()
    attempt(sound)
    fuzz(attempt, changed(good).map(lambda value: json.dumps(value).encode()) | damaged([sound], [b"[" * 3000]))
