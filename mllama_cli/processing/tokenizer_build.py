"""Make Llama 3's tokenizer.json, and the files that belong to it, from a vocabulary that another format holds."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mllama_cli.core.errors import CheckpointError
from mllama_cli.core.text import shown
from mllama_cli.processing.tokenizer_file import BEGIN_OF_TEXT, LLAMA_3

END_OF_TURN, PADDING = "<|eot_id|>", "<|finetune_right_pad_id|>"
STOPS = ("<|end_of_text|>", "<|eom_id|>", END_OF_TURN)
IMAGE = "<|image|>"


def llama_tokenizer(vocabulary: Sequence[str], special: Mapping[str, int], merges: Sequence[str], where: str) -> bytes:
    """Return tokenizer.json of a byte-level BPE with Llama 3's pre-tokenizer.

    Args:
        vocabulary: the ordinary tokens in byte-level characters, by id from 0 on.
        special: ids of the special tokens.
        merges: pairs of tokens with a space between them, the most important first.
        where: the file that holds them, for errors.

    Raises CheckpointError if they are not a vocabulary with its merges, or lack begin_of_text.
    """
    ids = {token: id_ for id_, token in enumerate(vocabulary)}
    if len(ids) != len(vocabulary):
        twice = next(token for id_, token in enumerate(vocabulary) if ids[token] != id_)
        raise _damaged(where, f"the token {shown(twice)} is in the vocabulary twice")
    pairs = [merge.split(" ") for merge in merges]
    for pair in pairs:
        if len(pair) != 2 or not all(part in ids for part in (*pair, "".join(pair))):
            raise _damaged(where, f"the merge {shown(' '.join(pair))} is not of two tokens of the vocabulary")
    if BEGIN_OF_TEXT not in special:
        raise _damaged(where, f"{BEGIN_OF_TEXT} is not in the vocabulary")
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for token, id_ in sorted(special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": _post_processor(special[BEGIN_OF_TEXT]),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": ids, "merges": pairs,
        },
    }  # fmt: skip
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode()


def token_ids(special: Mapping[str, int]) -> dict[str, Any]:
    """Return bos_token_id, eos_token_id and pad_token_id, of the tokens that are there, as config.json has them."""
    found = {
        "bos_token_id": special.get(BEGIN_OF_TEXT),
        "eos_token_id": [special[token] for token in STOPS if token in special] or None,
        "pad_token_id": special.get(PADDING),
    }
    return {name: value for name, value in found.items() if value is not None}


def tokenizer_config(context: int) -> dict[str, Any]:
    """Return tokenizer_config.json for a context of so many tokens."""
    return {
        "bos_token": BEGIN_OF_TEXT,
        "clean_up_tokenization_spaces": True,
        "eos_token": END_OF_TURN,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
        "pad_token": PADDING,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _post_processor(bos: int) -> dict[str, Any]:
    """Return what adds begin_of_text to a text, as transformers does by default."""
    first, second = ({"SpecialToken": {"id": BEGIN_OF_TEXT, "type_id": type_}} for type_ in (0, 1))
    text, other = ({"Sequence": {"id": id_, "type_id": type_}} for type_, id_ in enumerate("AB"))
    return {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {
                "type": "TemplateProcessing",
                "single": [first, text],
                "pair": [first, text, second, other],
                "special_tokens": {BEGIN_OF_TEXT: {"id": BEGIN_OF_TEXT, "ids": [bos], "tokens": [BEGIN_OF_TEXT]}},
            },
        ],
    }


def _damaged(where: str, why: str) -> CheckpointError:
    return CheckpointError(f"{where}: {why}", "Only Llama 3's tokenizer is read: pull or download the model again.")
