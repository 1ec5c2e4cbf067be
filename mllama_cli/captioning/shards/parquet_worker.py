"""Read a parquet file in a process of its own: one that crashes, hangs or takes all memory takes nothing else with it.

Run as a script by ``parquet``. It does not open the file but asks for parts of it: to a line {"read": [offset, size]},
the answer on stdin is a line {"bytes": size} and that many bytes. To a line with the names of the columns, the answer
says which are wanted; then each row is a line, and the bytes of the picture or its URL.
"""

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mllama_cli.processing.limits import DEFAULT_LIMITS
from mllama_cli.processing.worker_process import limit_memory

if TYPE_CHECKING:
    import pyarrow as pa

MAX_MEMORY = 1_000_000_000
"""Bytes that the worker may allocate."""
MAX_COLUMNS = 10_000
MAX_TEXTS_BYTES = 2**20
"""Longest row that prompts may quote, as JSON."""
MAX_KEY = 4096
"""Characters of a picture's name."""

_BATCH_BYTES = 2**25
_MAX_BATCH_ROWS = 1024
_READ_BYTES = 2**20


class _Asked(io.RawIOBase):
    """The file, of which the process that started this one reads what is asked for."""

    def __init__(self, size: int, requests: BinaryIO, answers: BinaryIO) -> None:
        self._size, self._requests, self._answers, self._position = size, requests, answers, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._position))
        if not wanted:
            return 0
        _send(self._answers, {"read": [self._position, wanted]})
        size: int = json.loads(self._requests.readline())["bytes"]
        buffer[:size] = self._requests.read(size)
        self._position += size
        return size


def main() -> None:
    """Read one file, then end."""
    answers = os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 1)  # libraries in C must not write among the answers
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    limit_memory(MAX_MEMORY)
    requests = sys.stdin.buffer
    try:
        import pyarrow as pa

        pa.set_cpu_count(1)
        file = _Asked(json.loads(requests.readline())["size"], requests, answers)
        for head, payload in _rows(file, requests, answers):
            _send(answers, {**head, "payload": len(payload)}, payload)
        _send(answers, {"end": True})
    except MemoryError:
        _send(answers, {"damage": f"needs more than {MAX_MEMORY // 10**6} MB to be read"})
    except (pa.ArrowException, OSError, ValueError, EOFError, RecursionError) as error:
        _send(answers, {"damage": " ".join(str(error).split())[:200]})


def _rows(file: _Asked, requests: BinaryIO, answers: BinaryIO) -> Iterator[tuple[dict[str, Any], bytes]]:
    import pyarrow.parquet as pq

    source = pq.ParquetFile(io.BufferedReader(file, _READ_BYTES), pre_buffer=False, buffer_size=_READ_BYTES)
    columns, metadata = len(source.schema_arrow.names), source.metadata
    if columns > MAX_COLUMNS:
        raise ValueError(f"it has {columns:,} columns, and at most {MAX_COLUMNS:,} are read")
    _send(answers, {"columns": source.schema_arrow.names})
    wanted = json.loads(requests.readline())
    sizes = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    average = max(sizes, default=0) * max(1, len(sizes)) // max(1, metadata.num_rows)
    at_once = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // max(1, average)))
    for batch in source.iter_batches(at_once, columns=wanted["columns"], use_threads=False):
        for row in zip(*batch.columns, strict=True):
            yield _described(dict(zip(batch.schema.names, row, strict=True)), **wanted)


def _described(
    row: "dict[str, pa.Scalar]", image: str, key: str | None, texts: bool, columns: list[str]
) -> tuple[dict[str, Any], bytes]:
    """Return a row's line, and the bytes of its picture or URL."""
    head: dict[str, Any] = {}
    value = cell_value(row.pop(image).as_py())
    if key is not None and (name := row[key].as_py()) is not None:
        head["key"] = str(name)[: MAX_KEY + 1]
    if texts:
        values = {name: value.as_py() for name, value in row.items()}
        quoted = json.dumps(values, default=str)
        head |= {"texts": values} if len(quoted) <= MAX_TEXTS_BYTES else {"long": len(quoted)}
    payload = b""
    if isinstance(value, bytes):
        head["value"] = "bytes" if len(value) <= DEFAULT_LIMITS.max_bytes else "large"
        payload = value if head["value"] == "bytes" else b""
    elif isinstance(value, str):
        head["value"], payload = "text", value[:MAX_TEXTS_BYTES].encode("utf-8", "surrogatepass")
    else:
        head["value"] = "none" if value is None else "other"
    return head, payload


def cell_value(value: Any) -> Any:
    """Return what a cell holds, of Hugging Face's ``{bytes, path}`` the one that is there."""
    if isinstance(value, Mapping):
        return value.get("bytes") if value.get("bytes") is not None else value.get("path")
    return value


def _send(answers: BinaryIO, head: Mapping[str, Any], payload: bytes = b"") -> None:
    answers.write(json.dumps(head, default=str).encode() + b"\n")
    answers.write(payload)
    answers.flush()


if __name__ == "__main__":
    main()
