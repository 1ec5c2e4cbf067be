"""tokenizer.json and the names of special tokens."""

import json
from pathlib import Path

from hypothesis import strategies as st

from mllama_cli.processing.tokenizer import MllamaTokenizer
from tests.checkpoints import write_tokenizer
from tests.fuzz.conftest import Fuzz
from tests.fuzz.inputs import TEXTS, VALUES, changed, damaged

PARTS = [
    {"type": "NFC"}, {"type": "Sequence", "normalizers": []}, {"type": "Sequence", "pretokenizers": []},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}, {"type": "Prepend"},
    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": True},
    {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}, {"type": "Fuse"},
    {"type": "BPE", "vocab": {"a": 0, "b": 2**32 - 1}, "merges": [["a", "b"]]}, {"id": 2**31, "content": "x"},
    {"id": 0, "content": "", "special": True, "single_word": True, "lstrip": True, "rstrip": True, "normalized": True},
]  # fmt: skip


def test_a_tokenizer(fuzz: Fuzz, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    good = json.loads((tmp_path / "tokenizer.json").read_text())

    def read(data: bytes, text: str) -> None:
        (tmp_path / "tokenizer.json").write_bytes(data)
        tokenizer = MllamaTokenizer.from_pretrained(tmp_path)
        ids = tokenizer.encode_markup(f"<|begin_of_text|>{text}")
        assert isinstance(tokenizer.decode(ids), str)
        tokenizer.require_below(300)

    files = changed(good, VALUES | st.sampled_from(PARTS)).map(lambda value: json.dumps(value).encode())
    fuzz(read, files | damaged([json.dumps(good).encode()]), TEXTS)


def test_the_names_of_special_tokens(fuzz: Fuzz, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    good = {"bos_token": {"content": "<|begin_of_text|>"}, "bos_token_id": 256, "text_config": {"bos_token_id": 1}}

    def read(data: object, name: str) -> None:
        file = tmp_path / name
        file.write_text(json.dumps(data))
        try:
            MllamaTokenizer.from_pretrained(tmp_path)
        finally:
            file.unlink()

    names = ["special_tokens_map.json", "tokenizer_config.json", "config.json", "generation_config.json"]
    fuzz(read, changed(good), st.sampled_from(names))
