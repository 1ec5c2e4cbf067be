"""Answers in JSON as the tokens that decoding feeds: those a schema forces, and those the model has to choose."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from mllama_cli.core.grammar import Grammar
from mllama_cli.processing.grammar import GrammarTokenizer
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.sketch.training.vocabulary import VOCABULARY_SIZE

_UNITS = re.compile(r'"(?:[^"\\]|\\.)*"|true|false|.')
_SENTENCE = re.compile(r"[A-Z].* .*\.")


def form_pieces(tokenizer: MllamaTokenizer, text: str, schema: dict[str, Any] | None) -> list[tuple[list[int], bool]]:
    """Return the tokens of a JSON text, in pieces; True marks those that the model has to choose.

    Names and short values are spelled, as all text in quotes is, since the shorter tokens are what is left when a
    schema forces part of a name. Sentences are written as in prose.
    """
    if schema is None:
        return [([id_ for id_, _ in _tokens(tokenizer, text)], True)]
    constraint = _grammars(tokenizer).constraint(Grammar.schema(schema))
    data = text.encode()
    chosen: dict[int, int] = {}
    begin = 0
    for id_, size in _tokens(tokenizer, text):
        chosen[begin] = id_
        begin += size
    begin = 0
    pieces: list[tuple[list[int], bool]] = []
    while begin < len(data):
        forced = list(constraint.forced)
        ids = forced or [chosen[begin] if begin in chosen else tokenizer.encode(data[begin : begin + 1].decode())[0]]
        for id_ in ids:
            constraint.push(id_)
        made = b"".join(map(tokenizer.token_bytes, ids))
        if not data.startswith(made, begin):
            raise ValueError(f"{text} does not fit its schema: {made!r} at {begin}")
        begin += len(made)
        pieces.append((ids, not forced))
    if not constraint.complete:
        raise ValueError(f"{text} does not fit its schema: it is not complete")
    return pieces


def _tokens(tokenizer: MllamaTokenizer, text: str) -> Iterator[tuple[int, int]]:
    """Yield the tokens of a JSON text as the model chooses them, each with its length in bytes."""
    for unit in _UNITS.findall(text):
        inner = unit[1:-1]
        if len(unit) > 1 and unit[0] == '"':
            texts = ['"', *([inner] if _SENTENCE.fullmatch(inner) else inner), '"']
        else:
            texts = [unit]
        for each in texts:
            for id_ in _encoded(tokenizer, each):
                yield id_, len(tokenizer.token_bytes(id_))


@lru_cache(maxsize=4096)
def _encoded(tokenizer: MllamaTokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text))


@lru_cache(maxsize=4)
def _grammars(tokenizer: MllamaTokenizer) -> GrammarTokenizer:
    return GrammarTokenizer(tokenizer, VOCABULARY_SIZE, [tokenizer.special_ids["<|eot_id|>"]])
