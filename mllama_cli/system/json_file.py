"""Read JSON and TOML that others wrote, within limits of size, nesting and digits."""

import codecs
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mllama_cli.core.errors import COPY_AGAIN, CheckpointError, MllamaError, UsageError
from mllama_cli.system.text_file import decode, read_file, too_large

MAX_JSON_BYTES = 16 * 2**20
"""Largest JSON file of a checkpoint or answer of a hub: an index of 100,000 tensors has 10 MB."""
MAX_TOML_BYTES = 2**17

_SMALL_BYTES = 4 * 2**20
"""JSON up to this size is decoded as a whole, whatever is in it."""
_MAX_STRING_BYTES = 16 * 2**20
"""Largest strings of such JSON as Python holds them: an emoji makes each character of its string take four bytes."""
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_WIDE = re.compile(rb"[\xc4-\xff]|\\u(?!00)")
_WIDEST = re.compile(rb"[\xf0-\xff]|\\u[dD][89abAB]")
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
_TOML_TOKEN = re.compile(
    r'"""(?:[^\\]|\\(?:.|\Z))*?(?:"""|\Z)|'
    + r"'''.*?(?:'''|\Z)"
    + r'|"(?:[^"\\\n]|\\.)*+"|\'[^\'\n]*+\'|#[^\n]*+|[.=,{}\n]',
    re.DOTALL,
)
"""What may have a dot that separates no keys, the dots that do, and what ends a key."""
_PIECE_BYTES = 1 << 20
_MAX_VALUES = 1_000_000
_MAX_DEPTH = 64
_MAX_DIGITS = 100


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raise CheckpointError if the file is missing, damaged or not an object."""
    try:
        data = read_file(path, limit=MAX_JSON_BYTES, error=CheckpointError, pipes=False)
    except CheckpointError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise CheckpointError(f"{path.name} is missing in {path.parent}", "The model folder is incomplete.") from None
    return parse_object(data, str(path), error=CheckpointError, hint=COPY_AGAIN)


def parse_object(data: bytes, name: str, *, error: type[MllamaError], hint: str) -> dict[str, Any]:
    """Return the object in JSON text. Raise ``error`` if it is not valid or not an object."""
    value = parse_json(data, name, error=error, hint=hint)
    if not isinstance(value, dict):
        raise error(f"{name} does not hold a JSON object", hint)
    return value


def parse_json(
    data: bytes,
    name: str,
    *,
    error: type[MllamaError] = UsageError,
    hint: str = "",
    lines_hint: str = "",
    max_values: int = _MAX_VALUES,
) -> Any:
    """Return the value of JSON text. Raise ``error``, with ``name``, if it is not valid or absurdly large or deep.

    ``lines_hint`` is the hint where more text follows the value, as in JSON Lines.
    """

    def loads(text: str) -> Any:
        if len(text) > max_values and sum(map(text.count, ",[{")) > max_values:
            raise ValueError(f"it has more than {max_values:,} values")
        try:
            return json.loads(text, parse_int=_integer)
        except json.JSONDecodeError as problem:
            if problem.msg == "Extra data" and lines_hint:
                raise error(f"{name} is not valid JSON: Extra data at {_where(problem)}", lines_hint) from problem
            raise ValueError(f"{problem.msg} at {_where(problem)}") from problem

    return _parse(loads, data, name, "JSON", error, hint)


def read_toml(path: Path, hint: str = "") -> dict[str, Any]:
    """Return the table in a TOML file. Raise UsageError; its cause is FileNotFoundError if the file is missing."""
    data = read_file(path, limit=MAX_TOML_BYTES, pipes=False)
    import tomllib  # mostly there is no file

    def loads(text: str) -> dict[str, Any]:
        _require_short_keys(text)
        return tomllib.loads(text)

    table: dict[str, Any] = _parse(loads, data, str(path), "TOML", UsageError, hint)
    return table


def _parse(loads: Callable[[str], Any], data: bytes, name: str, kind: str, error: type[MllamaError], hint: str) -> Any:
    text = decode(data, name, error) if len(data) <= _SMALL_BYTES else _decode_large(data, name, error)
    try:
        value = loads(text)
        _require_plain(value)
    except RecursionError as problem:
        raise error(f"{name} is nested too deeply", hint) from problem
    except ValueError as problem:
        raise error(f"{name} is not valid {kind}: {problem}", hint) from problem
    return value


def _decode_large(data: bytes, name: str, error: type[MllamaError]) -> str:
    """Return JSON text with what is not ASCII escaped, so that a picture in base64 takes a byte for each character.

    Raise ``error`` if its strings would take much more memory than the text.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    if wide or (_WIDE.search(data) and _string_bytes(data) > _MAX_STRING_BYTES):
        raise too_large(name, _SMALL_BYTES, error)
    data = data.removeprefix(codecs.BOM_UTF8)
    if data.isascii():
        return data.decode("ascii")
    pieces: list[str] = []
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), _PIECE_BYTES):
            piece = decoder.decode(data[start : start + _PIECE_BYTES], final=start + _PIECE_BYTES >= len(data))
            pieces.append(
                piece if piece.isascii() else _BEYOND_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], piece)
            )
    except UnicodeDecodeError:
        decode(data, name, error)  # raises, with the position in the whole
        raise
    return "".join(pieces)


def _string_bytes(data: bytes) -> int:
    """Return the bytes that Python takes for the strings in JSON, or more."""
    total = 0
    for string in _STRING.finditer(data):
        width = 1 if not _WIDE.search(data, *string.span()) else 2 if not _WIDEST.search(data, *string.span()) else 4
        total += width * (string.end() - string.start())
    return total


def _require_plain(value: Any) -> None:
    """Raise RecursionError or ValueError for what would fail wherever it is shown or computed with."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        if any(isinstance(each, int) and abs(each) >= 10**_MAX_DIGITS for each in level):
            raise ValueError(f"it has a number of more than {_MAX_DIGITS} digits")
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [value for values in inner for value in values]
        if not level:
            return
    raise RecursionError


def _require_short_keys(toml: str) -> None:
    """Raise RecursionError for a dotted key of many parts, for which tomllib takes the square of their number."""
    parts = 1
    for token in _TOML_TOKEN.finditer(toml):
        parts = parts + 1 if token[0] == "." else 1 if token[0] in "=,{}\n" else parts
        if parts > _MAX_DEPTH:
            raise RecursionError


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _where(problem: json.JSONDecodeError) -> str:
    return f"line {problem.lineno}, column {problem.colno}"
