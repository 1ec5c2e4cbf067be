"""Convert text to token ids and back, for byte-level BPE tokenizers (Llama 3's and the built-in model's)."""

import codecs
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mllama_cli.core.config import section
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError, ContextLengthError
from mllama_cli.core.text import replace_surrogates, shown
from mllama_cli.processing.tokenizer_file import BEGIN_OF_TEXT, read_tokenizer
from mllama_cli.system.files import is_file
from mllama_cli.system.json_file import read_json

_BYTES_PER_TOKEN = 7
"""Any ordinary text has fewer on average. A long run of one character has more, and takes much memory and time."""
_PIECE_CHARACTERS = 1 << 14
_CUT_TOKENS = 16
_COPY_NAMES = "Copy tokenizer.json and tokenizer_config.json from the original model."


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
        self._rows = sys.maxsize
        self._skip = frozenset(self.special_ids.values())

    @classmethod
    def from_pretrained(cls, folder: Path) -> "MllamaTokenizer":
        """Read tokenizer.json of a checkpoint folder, and the names of its special tokens.

        They are in tokenizer_config.json or, in older folders, in special_tokens_map.json; begin_of_text is also known
        by its id in config.json, else by Llama 3's name. Raises CheckpointError.
        """
        backend = read_tokenizer(folder / "tokenizer.json")
        names: dict[str, str] = {}
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            if is_file(folder / file):
                names.update(_special_names(read_json(folder / file)))
        for file in ("config.json", "generation_config.json"):
            if not names.get("bos_token") and is_file(folder / file):
                data = read_json(folder / file)
                id_ = data.get("bos_token_id", section(data, "text_config", file).get("bos_token_id"))
                token = backend.id_to_token(id_) if type(id_) is int and 0 <= id_ < 2**32 else None
                names.update({"bos_token": token} if token else {})
        tokenizer = cls(backend, names)
        if not names.get("bos_token") and BEGIN_OF_TEXT in tokenizer.special_ids:
            tokenizer.special_names["bos_token"] = BEGIN_OF_TEXT
        return tokenizer

    def require_bos(self) -> str:
        """Return the token that every prompt begins with. Raise CheckpointError if none is known, or not by its id."""
        bos = self.special_names.get("bos_token", "")
        if not bos:
            raise CheckpointError("No file of the model says which token begins a prompt (bos_token)", _COPY_NAMES)
        if bos not in self.special_ids and bos.encode() not in self._literal.values():
            raise CheckpointError(
                f"The model's bos_token is {shown(bos)}, which is not a token of tokenizer.json", _COPY_NAMES
            )
        return bos

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, with special tokens in it as ordinary characters."""
        if not text:
            return []
        self.backend.encode_special_tokens = True
        try:
            ids: list[int] = self.backend.encode(replace_surrogates(text), add_special_tokens=False).ids
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # plain Exception, or a panic, which derives from BaseException
            raise CheckpointError(f"tokenizer.json fails on this text: {str(error)[:300]}", COPY_AGAIN) from error
        return ids

    def require_below(self, rows: int) -> None:
        """Raise CheckpointError, now or in ``encode_markup``, for an id that is not below the number of embeddings."""
        self._rows = rows
        if self.backend.get_vocab_size() > rows:
            raise self._beyond(self.backend.get_vocab_size() - 1)

    def _beyond(self, id_: int) -> CheckpointError:
        return CheckpointError(
            f"tokenizer.json has token ids up to {id_}, but the model has only {self._rows} embeddings",
            "tokenizer.json and the weights do not belong together.",
        )

    def encode_markup(
        self, text: str, restore: Sequence[tuple[str, str]] = (), max_tokens: int | None = None
    ) -> list[int]:
        """Return the ids of text in which special tokens are parsed. No begin_of_text is added.

        ``restore`` has (placeholder, text) pairs, which are replaced after the special tokens were parsed. Raise
        ContextLengthError if the text is much longer than ``max_tokens``.
        """
        pieces = [
            self.special_ids[piece] if piece in self.special_ids else _restored(piece, restore)
            for piece in self._special.split(text)
        ]
        if max_tokens is not None:
            self._require_fits(pieces, max_tokens)
        ids: list[int] = []
        for piece in pieces:
            ids.extend(self.encode(piece) if isinstance(piece, str) else [piece])
        if ids and max(ids) >= self._rows:
            raise self._beyond(max(ids))
        return ids

    def _require_fits(self, pieces: Sequence[str | int], max_tokens: int) -> None:
        """Raise ContextLengthError for texts and special tokens that are too long, without tokenizing all of them.

        Megabytes at once take gigabytes, so a text that may be too long is tokenized piece by piece, until it is clear
        that it is. A cut may add a few tokens, so ``_CUT_TOKENS`` at each do not count.
        """
        texts = [piece for piece in pieces if isinstance(piece, str)]
        count = len(pieces) - len(texts)
        size = count + sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        if size <= max_tokens:
            return
        if size > _BYTES_PER_TOKEN * max_tokens:
            raise self._too_long(f"{size / 1000:,.0f} kB long", max_tokens)
        for text in texts:
            for start in range(0, len(text), _PIECE_CHARACTERS):
                found = len(self.encode(text[start : start + _PIECE_CHARACTERS]))
                count += max(0, found - _CUT_TOKENS) if start else found
                if count > max_tokens + _CUT_TOKENS:
                    raise self._too_long(f"more than {max_tokens} tokens long", max_tokens)

    @staticmethod
    def _too_long(length: str, max_tokens: int) -> ContextLengthError:
        return ContextLengthError(
            f"The conversation is {length}, which is more than this model can read (its context is {max_tokens} "
            "tokens)",
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
        return bytes(_BYTES[char] for char in token if char in _BYTES) if token is not None else b""

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


def _restored(text: str, pairs: Sequence[tuple[str, str]]) -> str:
    for placeholder, original in pairs:
        text = text.replace(placeholder, original)
    return text


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
