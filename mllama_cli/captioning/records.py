"""Caption records as JSON Lines and CSV: written to bytes and read back."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any, Literal

from mllama_cli.core.caption_events import CaptionRecord

Format = Literal["jsonl", "csv"]
COLUMNS = tuple(each.name for each in fields(CaptionRecord))


def as_json(record: CaptionRecord) -> dict[str, Any]:
    """Return the record for a JSON line, with null for a caption or an error that does not exist."""
    values = asdict(record)
    values["seconds"] = round(record.seconds, 3)
    if record.error:
        values["caption"] = None
    return {**values, "error": record.error or None}


def encode(record: CaptionRecord, form: Format) -> bytes:
    """Return one line with its line end; line ends in the caption are quoted in CSV and escaped in JSON."""
    if form == "jsonl":
        # A file name may be any bytes: they are written unchanged.
        return json.dumps(as_json(record), ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
    values = {**asdict(record), "seconds": round(record.seconds, 3)}
    return _csv_line([values[name] for name in COLUMNS])


def header(form: Format) -> bytes:
    """Return what comes before the first record."""
    return _csv_line(list(COLUMNS)) if form == "csv" else b""


def records(data: Iterator[bytes], form: Format) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield (raw bytes, values) of each complete record in the lines ``data``; values are None if it is not a record.

    An incomplete record at the end is left out: the caller knows where it starts by the length of the others.
    """
    if form == "jsonl":
        for line in data:
            if line.endswith(b"\n"):
                yield line, _parsed(line)
        return
    raw = b""
    columns: list[str] | None = None
    for line in data:
        raw += line
        if not line.endswith(b"\n") or raw.count(b'"') % 2:
            continue  # a line end in a quoted caption
        row = next(csv.reader(io.StringIO(raw.decode("utf-8", "surrogateescape"), newline="")), [])
        if columns is None:
            columns = row
            yield raw, None
        else:
            yield raw, dict(zip(columns, row, strict=False)) if len(row) == len(columns) else None
        raw = b""


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _csv_line(values: list[Any]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode("utf-8", "surrogateescape")
