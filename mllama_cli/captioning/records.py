"""Encode caption records as JSON Lines and CSV, and read them back."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from typing import IO, Any, Literal

from mllama_cli.core.caption_events import CaptionRecord
from mllama_cli.core.text import replace_surrogates

Format = Literal["jsonl", "csv"]

MAX_RECORD_BYTES = 16 * 2**20
"""Longest record, far more than a prompt and an answer have."""

MAX_VALUES = 100_000
"""Most values in a record, also of a caption that is JSON: more is not read, as each would take many bytes."""

_CUT_TEXT = re.compile(r'"(?:[^"\\]|\\.)*\\?|n|nu|nul|', re.DOTALL)
_CUT_NUMBER = re.compile(r"-?\d*\.?\d*(?:e[+-]?\d*)?")


def as_json(record: CaptionRecord, *, with_fields: bool = False) -> dict[str, Any]:
    """Return the record for a JSON line, with null for a missing caption or error.

    ``with_fields`` adds what a caption says that is JSON.
    """
    caption = None if record.error else record.caption
    fields = {"fields": parsed_caption(record)} if with_fields else {}
    return {**_values(record), "caption": caption, "error": record.error or None, **fields}


def encode(record: CaptionRecord, form: Format, columns: Sequence[str] | None = None) -> bytes:
    """Return one line with its line end. Line ends in the caption are quoted in CSV and escaped in JSON.

    ``columns`` are the names of fields in captions that are JSON, which get columns of their own; None for others.
    """
    if form == "jsonl":
        values = as_json(record, with_fields=columns is not None)
        # A file name may contain any bytes, which are written unchanged.
        return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
    parsed = parsed_caption(record) if columns else None
    said = parsed if isinstance(parsed, dict) else {}
    return _csv_line([*_values(record).values(), *(_cell(said.get(name)) for name in columns or ())])


def header(form: Format, columns: Sequence[str] | None = None) -> bytes:
    """Return what precedes the first record. A field that is called as one of our columns is ``fields.NAME``."""
    names = [f"fields.{name}" if name in COLUMNS else name for name in map(replace_surrogates, columns or ())]
    return _csv_line([*COLUMNS, *names]) if form == "csv" else b""


def parsed_caption(record: CaptionRecord) -> Any:
    """Return what a caption says that is JSON; None if it failed."""
    if record.error:
        return None
    try:
        return _encodable(json.loads(record.caption))
    except (ValueError, RecursionError):  # nested deeper than Python reads
        return None


def _encodable(value: Any) -> Any:
    """Return a value without lone surrogates, which JSON can escape and no encoding can write."""
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, list):
        return [_encodable(each) for each in value]
    if isinstance(value, dict):
        return {replace_surrogates(key): _encodable(each) for key, each in value.items()}
    return value


def _cell(value: Any) -> str:
    """Return a field as a cell of a table: text as it is, nothing for null, and JSON for all else."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


COLUMNS = tuple(each.name for each in fields(CaptionRecord))


def is_record(values: dict[str, Any] | None) -> bool:
    """Return whether values are those of one of our lines: a foreign file may have objects or columns, too."""
    return values is not None and values.keys() >= set(COLUMNS) and isinstance(values["path"], str)


def is_cut_record(data: bytes) -> bool:
    """Return whether ``data`` is what remains of one of our JSON lines that was cut off anywhere.

    >>> is_cut_record(b'{"path": "a.png", "cap'), is_cut_record(b'{"path": "a.png", "note": "mine"}')
    (True, False)
    """
    text = data.decode("utf-8", "replace")
    position = 0
    for number, column in enumerate(fields(CaptionRecord)):
        expected = f'{", " if number else "{"}"{column.name}": '
        rest = text[position:]
        if not rest.startswith(expected):
            return expected.startswith(rest)
        position += len(expected)
        if (_CUT_TEXT if column.type is str else _CUT_NUMBER).fullmatch(text, position):
            return True
        try:
            value, position = json.JSONDecoder().raw_decode(text, position)
        except (ValueError, RecursionError):
            return False
        if not isinstance(value, str | None if column.type is str else int | float):
            return False
    rest, fields_of = text[position:], ', "fields": '
    return rest in ("", "}") or rest.startswith(fields_of) or fields_of.startswith(rest)


def records(data: IO[bytes], form: Format) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield (raw bytes, values) of each complete line in ``data``; values are None if it is not a record.

    A last line that lacks nothing but its end is complete, too: editors write such. An incomplete line at the end is
    left out; it starts where the yielded bytes end. What is longer than ``MAX_RECORD_BYTES`` comes in pieces that are
    not records.
    """
    lines = iter(lambda: data.readline(MAX_RECORD_BYTES), b"")
    if form == "jsonl":
        for line in lines:
            values = _parsed(line)
            if values is not None or line.endswith(b"\n") or len(line) == MAX_RECORD_BYTES:
                yield line, values
        return
    raw = bytearray()
    quotes = 0
    columns: list[str] | None = None
    for line in lines:
        raw += line
        quotes += line.count(b'"')
        too_long = len(raw) >= MAX_RECORD_BYTES
        if quotes % 2 and not too_long:
            continue  # inside a quoted caption
        row = [] if too_long else _row(bytes(raw))
        if too_long:
            yield bytes(raw), None
        elif not line.endswith(b"\n") and (columns is None or len(row) != len(columns) or not row[1:2]):
            continue
        elif columns is None:
            columns = row
            yield bytes(raw), None
        else:
            yield bytes(raw), dict(zip(columns, row, strict=False)) if len(row) == len(columns) else None
        raw.clear()
        quotes = 0


def _row(raw: bytes) -> list[str]:
    """Return the fields of one CSV record; none if the reader refuses it."""
    if raw.count(b",") > MAX_VALUES:
        return []
    try:
        return next(csv.reader(io.StringIO(raw.decode("utf-8", "surrogateescape"), newline="")), [])
    except csv.Error:  # a field beyond its limit
        return []


def _parsed(line: bytes) -> dict[str, Any] | None:
    if sum(map(line.count, (b",", b"[", b"{"))) > MAX_VALUES:
        return None
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _values(record: CaptionRecord) -> dict[str, Any]:
    return {**asdict(record), "seconds": round(record.seconds, 3)}


def _csv_line(values: Iterable[Any]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode("utf-8", "surrogateescape")
