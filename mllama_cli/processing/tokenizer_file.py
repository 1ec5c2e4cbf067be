"""Read a stranger's tokenizer.json: only the parts of byte-level BPE, which cannot hang, panic or change text.

The tokenizers library has no limits of its own: some parts panic (and write to stderr), some grow a text a
thousandfold, and its regular expressions backtrack.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.core.text import shown

MAX_BYTES = 200 * 2**20

BEGIN_OF_TEXT = "<|begin_of_text|>"

_TYPES = frozenset(
    ("BPE", "ByteLevel", "Sequence", "Split", "NFC", "NFD", "NFKC", "NFKD", "TemplateProcessing")
)  # fmt: skip

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# The built-in model's. A character inside quotes: the next quote after it is a closing one, which precedes a space,
# punctuation or the end; an opening one precedes a letter or digit.
BUILT_IN_QUOTED = r'[^"](?=[^"]{0,40}"(?:[\s.,;:!?]|$))'
BUILT_IN_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}|\n+| ?[^\s\p{L}\p{N}]+|\s+"
_PATTERNS = frozenset((LLAMA_3, BUILT_IN_QUOTED, BUILT_IN_WORDS))

# In a vocabulary the quotes would be escaped, so these match only outside strings.
_TYPE = re.compile(rb'"type"\s*:\s*"([^"]*)"')
_AFFIX = re.compile(rb'"(continuing_subword_prefix|end_of_word_suffix)"\s*:\s*"[^"]')


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a file, without truncation, padding and dropout, which would change prompts silently.

    Raises CheckpointError for a file that is missing, damaged or not byte-level BPE.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path.name} is missing in {path.parent}", "The model folder is incomplete.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", "Check the file and its rights.") from error
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_BYTES >> 20} MiB, as no tokenizer is", COPY_AGAIN)
    # Before the library sees it: a panic writes to stderr.
    for found in _TYPE.finditer(data):
        if (kind := found[1].decode("utf-8", "replace")) not in _TYPES:
            raise _unsupported(path, f"a part of type {shown(kind)}")
    if affix := _AFFIX.search(data):
        raise _unsupported(path, affix[1].decode())
    try:
        backend = Tokenizer.from_buffer(data)
        backend.no_truncation()
        backend.no_padding()
        if backend.model.dropout is not None:
            backend.model.dropout = None
        decoder = type(backend.decoder).__name__ if backend.decoder is not None else "none"
        parts = [json.loads(part.__getstate__()) for part in (backend.normalizer, backend.pre_tokenizer) if part]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # plain Exception, or a panic, which derives from BaseException
        raise CheckpointError(f"{path} cannot be read: {str(error)[:300]}", COPY_AGAIN) from error
    if decoder != "ByteLevel":
        raise CheckpointError(f"{path} is not a byte-level tokenizer (its decoder is {decoder})")
    for part in parts:
        for key, value in _entries(part):
            if key == "type" and value not in _TYPES:
                raise _unsupported(path, f"a part of type {shown(value)}")
            if key == "Regex" and value not in _PATTERNS:
                raise _unsupported(path, f"the regular expression {shown(value)}")
    return backend


def _entries(part: Any) -> Iterator[tuple[str, str]]:
    """Yield all texts in a part of a tokenizer with their keys."""
    if isinstance(part, dict):
        for key, value in part.items():
            if isinstance(value, str):
                yield key, value
            yield from _entries(value)
    elif isinstance(part, list):
        for value in part:
            yield from _entries(value)


def _unsupported(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} has {what}, which is not supported",
        "Llama 3's tokenizer is: copy tokenizer.json from the original model.",
    )
