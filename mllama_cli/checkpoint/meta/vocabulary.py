"""Read tokenizer.model, Meta's list of tokens: on each line the base64 of a token's bytes, and its rank."""

import base64
import binascii
from pathlib import Path

from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.core.text import as_number
from mllama_cli.system.text_file import read_file

MAX_BYTES = 32 * 2**20
"""Llama 3's has 2.2 MB."""
MAX_TOKEN_BYTES = 512
MAX_TOKENS = 1_000_000

_NAMED = {
    0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id", 7: "end_header_id",
    8: "eom_id", 9: "eot_id", 10: "python_tag",
}  # fmt: skip
SPECIAL_TOKENS = 256


def read_ranks(path: Path) -> list[bytes]:
    """Return the tokens of a file by id. Raise CheckpointError if it is damaged or lacks a single byte."""
    data = read_file(path, limit=MAX_BYTES, error=CheckpointError, pipes=False)
    tokens: list[bytes] = []
    for number, line in enumerate(data.splitlines(), start=1):
        word, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(word, validate=True)
        except binascii.Error as error:
            raise _damaged(path, f"line {number} is not base64 and a number") from error
        if as_number(rank.decode("ascii", "replace")) != len(tokens) or not 0 < len(token) <= MAX_TOKEN_BYTES:
            raise _damaged(path, f"line {number} is not that of token {len(tokens)}")
        tokens.append(token)
    if len(set(tokens)) != len(tokens) or not {bytes([byte]) for byte in range(256)} <= set(tokens):
        raise _damaged(path, "a token is in it twice, or a byte is not in it")
    return tokens


def merges_of(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the pairs of tokens that make longer ones, in the order in which a text's are merged."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges: list[tuple[bytes, bytes]] = []
    for token in tokens:
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        pairs = [pair for pair in cuts if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def byte_characters() -> list[str]:
    """Return the printable character that stands for each byte in a byte-level vocabulary, as in GPT-2."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def special_tokens(first: int) -> dict[str, int]:
    """Return Llama 3.2's special tokens with their ids, of which ``first`` is the lowest.

    >>> special_tokens(128000)["<|eot_id|>"], special_tokens(128000)["<|reserved_special_token_3|>"]
    (128009, 128011)
    """
    reserved = (f"reserved_special_token_{number}" for number in range(SPECIAL_TOKENS))
    return {f"<|{_NAMED.get(index) or next(reserved)}|>": first + index for index in range(SPECIAL_TOKENS)}


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is not Llama 3's tokenizer: {why}", COPY_AGAIN)
