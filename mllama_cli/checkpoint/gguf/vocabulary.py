"""The tokenizer in a GGUF file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.core.text import shown

_NORMAL, _UNUSED = 1, 5
_BYTES = 256
_PRETOKENIZERS = (None, "default", "llama-bpe", "llama3", "llama-v3")
"""Names of Llama 3's splitting of a text into words. Early files have none."""


@dataclass(frozen=True)
class GgufVocabulary:
    """Ordinary tokens in byte-level characters by id, ids of special tokens, and merges of two tokens in order."""

    tokens: tuple[str, ...]
    special: Mapping[str, int]
    merges: tuple[str, ...]


def gguf_vocabulary(entries: Mapping[str, Any], where: str) -> GgufVocabulary:
    """Return the tokenizer in a file's entries. Raise CheckpointError if it is damaged or not byte-level BPE."""
    model, split = entries.get("tokenizer.ggml.model"), entries.get("tokenizer.ggml.pre")
    if model != "gpt2" or split not in _PRETOKENIZERS:
        raise CheckpointError(
            f"{where} has the tokenizer {shown(model)} / {shown(split)}, not Llama 3's ('gpt2' / 'llama-bpe')",
            "Only Llama 3.2 Vision is read.",
        )
    tokens, kinds, merges = (entries.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges"))
    if merges is None and isinstance(tokens, list) and len(tokens) < 2 * _BYTES:  # one token for each byte
        merges = []
    for name, value, type_ in (("tokens", tokens, str), ("token_type", kinds, int), ("merges", merges, str)):
        if not isinstance(value, list) or not all(isinstance(each, type_) for each in value):
            raise CheckpointError(f"{where}: its tokenizer has no list of {name}", COPY_AGAIN)
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    assert isinstance(merges, list)
    if len(tokens) != len(kinds):
        raise CheckpointError(f"{where}: {len(tokens)} tokens have {len(kinds)} types", COPY_AGAIN)
    ordinary = next((id_ for id_, kind in enumerate(kinds) if kind != _NORMAL), len(kinds))
    special = {
        token: ordinary + number
        for number, (token, kind) in enumerate(zip(tokens[ordinary:], kinds[ordinary:], strict=True))
        if kind != _UNUSED
    }
    return GgufVocabulary(tuple(tokens[:ordinary]), special, tuple(merges))
