"""The captions of one shard as a parquet file, or as a tar with the pictures."""

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, Literal, Protocol, get_args

from mllama_cli.captioning.records import parsed_caption
from mllama_cli.captioning.shards.entry import ShardImage
from mllama_cli.captioning.shards.packages import required
from mllama_cli.captioning.shards.webdataset import as_json_text, split_key
from mllama_cli.core.caption_events import CaptionRecord
from mllama_cli.core.errors import MllamaError
from mllama_cli.core.text import replace_surrogates

OutputForm = Literal["parquet", "webdataset"]
OUTPUT_FORMS: tuple[OutputForm, ...] = get_args(OutputForm)
SUFFIXES: Mapping[OutputForm, str] = {"parquet": ".parquet", "webdataset": ".tar"}

ROWS_IN_GROUP = 4096
"""Rows that are kept in memory before they are written."""

_TEXTS = ("key", "caption", "finish_reason")
_NUMBERS = ("tokens", "width", "height")
_REST = ("sha256", "model", "prompt_hash", "error")
COLUMNS = (*_TEXTS, *_NUMBERS, *_REST)

Row = dict[str, Any]


def row_of(key: str, record: CaptionRecord, finish_reason: str | None, columns: Sequence[str] | None) -> Row:
    """Return a picture's row. What failed has an error and null for the caption; what was not read, for its size."""
    failed = bool(record.error)
    row: Row = {
        "key": key,
        "caption": None if failed else record.caption,
        "finish_reason": None if failed else finish_reason,
        "tokens": None if failed else record.tokens,
        "width": record.width or None,
        "height": record.height or None,
        "sha256": record.sha256 or None,
        "model": record.model,
        "prompt_hash": prompt_hash(record.prompt) if record.prompt else None,
        "error": record.error or None,
    }
    if columns:
        parsed = parsed_caption(record)
        said = parsed if isinstance(parsed, dict) else {}
        row |= {column_name(name): _cell(said.get(name)) for name in columns}
    return {name: replace_surrogates(value) if isinstance(value, str) else value for name, value in row.items()}


def prompt_hash(prompt: str) -> str:
    """Return the first 16 hex digits of a prompt's SHA-256."""
    return hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()[:16]


def column_name(name: str) -> str:
    """Return a schema's field as a column, which is ``fields.NAME`` where we have one of that name."""
    return f"fields.{name}" if name in COLUMNS else replace_surrogates(name)


def _cell(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class ShardOutput(Protocol):
    """A file of captions in the making, which nobody sees. ``has_pictures`` says whether it has the pictures, too."""

    has_pictures: bool

    def add(self, entry: ShardImage | None, row: Row) -> None:
        """Add the next row. Without ``has_pictures``, the entry may be None."""
        ...

    def finished(self, about: Mapping[str, Any]) -> BinaryIO:
        """Return the whole file; ``about`` is stored in it."""
        ...

    def close(self) -> None:
        """Drop the file."""
        ...


def new_output(form: OutputForm, columns: Sequence[str] | None) -> ShardOutput:
    """Return an empty output. Raise UsageError if a package is missing."""
    return ParquetOutput(columns) if form == "parquet" else TarOutput()


class ParquetOutput:
    """Rows in a file without a name, which the system removes when the process ends, however it does.

    Args:
        columns: the fields of captions that are JSON.
    """

    has_pictures = False

    def __init__(self, columns: Sequence[str] | None) -> None:
        self._pa, self._pq = required("pyarrow"), required("pyarrow.parquet")
        text, number = self._pa.string(), self._pa.int32()
        names = [*COLUMNS, *map(column_name, columns or ())]
        self._schema = self._pa.schema([(name, number if name in _NUMBERS else text) for name in names])
        self._file = _nameless_file()
        self._writer: Any = None
        self._rows: list[Row] = []

    def add(self, entry: ShardImage | None, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) >= ROWS_IN_GROUP:
            self._flush()

    def finished(self, about: Mapping[str, Any]) -> BinaryIO:
        if self._rows or self._writer is None:
            self._flush()
        self._writer.add_key_value_metadata({"mllama": json.dumps(about)})
        self._writer.close()
        return self._file

    def close(self) -> None:
        if self._writer is not None:
            with suppress(OSError, ValueError):
                self._writer.close()
        self._file.close()

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = self._pq.ParquetWriter(self._file, self._schema, compression="zstd")
        self._writer.write_table(self._pa.Table.from_pylist(self._rows, self._schema))
        self._rows.clear()


class TarOutput:
    """A webdataset: KEY.jpg as it was, KEY.txt with the caption and KEY.json with the row."""

    has_pictures = True

    def __init__(self) -> None:
        self._file = _nameless_file()
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, entry: ShardImage | None, row: Row) -> None:
        assert entry is not None
        with suppress(MllamaError):  # the row says what is wrong with it
            extension = split_key(entry.path.rpartition("/")[2])[1]
            data = entry.read().data
            self._member(f"{entry.key}.{extension if entry.shard.form == 'tar' else _extension(data)}", data)
        if row["caption"] is not None:
            self._member(f"{entry.key}.txt", row["caption"].encode())
        self._member(f"{entry.key}.json", as_json_text(row))

    def finished(self, about: Mapping[str, Any]) -> BinaryIO:
        self._tar.close()
        return self._file

    def close(self) -> None:
        self._file.close()

    def _member(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))
        self._tar.getmembers().clear()  # it would keep them all


def _extension(data: bytes) -> str:
    from mllama_cli.core.filetypes import image_format

    found = image_format(data)
    return found.suffixes[0].removeprefix(".") if found is not None else "img"


def _nameless_file() -> BinaryIO:
    return tempfile.TemporaryFile(prefix="mllama-")
