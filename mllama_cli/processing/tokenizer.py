"""Convert text to token ids and back, for byte-level BPE tokenizers (Llama 3's and the built-in model's)."""

import codecs
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mllama_cli.core.errors import COPY_AGAIN, CheckpointError, ContextLengthError
from mllama_cli.system.json_file import read_json

_CHARACTERS_PER_TOKEN = 8
"""More than any ordinary text has on average."""
_PIECE_CHARACTERS = 1 << 14
_CUT_TOKENS = 16


class MllamaTokenizer:
    """tokenizer.json with the names of its special tokens.

    ``encode`` takes text literally: special tokens in it are encoded as ordinary text, so that no message can forge a
    header or an image. ``encode_markup`` parses special tokens, for rendered templates.
    """

    def __init__(self, backend: Tokenizer, special_names: dict[str, str] | None = None) -> None:
        self.backend = backend
        self.special_names = special_names or {}
        added = backend.get_added_tokens_decoder()
        self.special_ids = {token.content: id_ for id_, token in added.items() if token.special}
        self._literal = {id_: token.content.encode() for id_, token in added.items() if not token.special}
        self._special = re.compile(
            "(" + "|".join(map(re.escape, self.special_ids)) + ")" if self.special_ids else "(?!)"
        )
        self._skip = frozenset(self.special_ids.values())

    @classmethod
    def from_pretrained(cls, folder: Path) -> "MllamaTokenizer":
        """Read tokenizer.json and tokenizer_config.json of a checkpoint folder."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"tokenizer.json is missing in {folder}", "The model folder is incomplete.")
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises plain Exception
            raise CheckpointError(f"{path} cannot be read: {error}", COPY_AGAIN) from error
        decoder = type(backend.decoder).__name__ if backend.decoder is not None else "none"
        if decoder != "ByteLevel":
            raise CheckpointError(f"{path} is not a byte-level tokenizer (its decoder is {decoder})")
        config = folder / "tokenizer_config.json"
        names = _special_names(read_json(config)) if config.is_file() else {}
        return cls(backend, names)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, with special tokens in it as ordinary characters."""
        if not text:
            return []
        self.backend.encode_special_tokens = True
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_markup(
        self, text: str, restore: Sequence[tuple[str, str]] = (), max_tokens: int | None = None
    ) -> list[int]:
        """Return the ids of text in which special tokens are parsed. No begin_of_text is added.

        ``restore`` has (placeholder, text) pairs, which are replaced after the special tokens were parsed. Raise
        ContextLengthError if the text is far longer than ``max_tokens``.
        """
        if max_tokens is not None and len(text) > _CHARACTERS_PER_TOKEN * max_tokens:
            self._require_fits(text, max_tokens)
        ids: list[int] = []
        for piece in self._special.split(text):
            if piece in self.special_ids:
                ids.append(self.special_ids[piece])
                continue
            for placeholder, original in restore:
                piece = piece.replace(placeholder, original)
            ids.extend(self.encode(piece))
        return ids

    def _require_fits(self, text: str, max_tokens: int) -> None:
        """Tokenize piece by piece, since megabytes at once take gigabytes, and only until it is clear that it is long.

        A cut may add a few tokens, so ``_CUT_TOKENS`` of each piece do not count.
        """
        count = 0
        for start in range(0, len(text), _PIECE_CHARACTERS):
            count += max(0, len(self.encode(text[start : start + _PIECE_CHARACTERS])) - _CUT_TOKENS)
            if count > max_tokens:
                raise ContextLengthError(
                    f"The conversation is more than {max_tokens} tokens long, which is more than this model can read "
                    f"(its context is {max_tokens})",
                    "Shorten the text or start a new conversation.",
                )

    def mask(self, text: str, marker: str) -> str:
        """Replace each special token by a placeholder of ``marker``, which must not occur in the text, and a number."""
        index = {content: str(number) for number, content in enumerate(self.special_ids)}
        return self._special.sub(lambda match: f"{marker}{index[match[0]]};", text)

    def placeholders(self, marker: str) -> list[tuple[str, str]]:
        """Return the (placeholder, text) pairs of ``mask``."""
        return [(f"{marker}{number};", content) for number, content in enumerate(self.special_ids)]

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of one token; none for special tokens and unknown ids."""
        if token_id in self._skip:
            return b""
        if token_id in self._literal:
            return self._literal[token_id]
        token = self.backend.id_to_token(token_id)
        return bytes(_BYTES[char] for char in token) if token is not None else b""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids without special tokens."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")


class StreamingDetokenizer:
    """Decode token ids one by one. A character of several tokens appears when it is complete."""

    def __init__(self, tokenizer: MllamaTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """Return a replacement character if the text ends with an incomplete character."""
        return self._decoder.decode(b"", final=True)


def _special_names(config: dict[str, Any]) -> dict[str, str]:
    """Return bos_token, eos_token, ... as plain strings; the file has strings or objects."""
    contents = {key: value.get("content") if isinstance(value, dict) else value for key, value in config.items()}
    return {key: content for key, content in contents.items() if key.endswith("_token") and isinstance(content, str)}


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's map from printable characters to bytes, which byte-level vocabularies use."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in visible}
    others = [byte for byte in range(256) if byte not in visible]
    alphabet.update({chr(256 + number): byte for number, byte in enumerate(others)})
    return alphabet


_BYTES = _byte_alphabet()
