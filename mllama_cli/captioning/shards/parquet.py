"""Read pictures and their addresses from a parquet file."""

import io
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from mllama_cli.captioning.shards import parquet_worker
from mllama_cli.captioning.shards.downloads import MAX_URL, Fetch
from mllama_cli.captioning.shards.entry import Content, ReadOptions, Shard, ShardImage
from mllama_cli.captioning.shards.packages import required
from mllama_cli.captioning.shards.parquet_worker import MAX_KEY, cell_value
from mllama_cli.captioning.shards.tar import DamagedShardError, require_little
from mllama_cli.core.errors import ImageError, UsageError
from mllama_cli.core.text import suggest
from mllama_cli.processing.limits import DEFAULT_LIMITS, MAX_PICTURE_SECONDS, too_many_bytes
from mllama_cli.processing.worker_process import end_worker, start_worker

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "img", "url", "image_url", "URL")
KEY_COLUMNS = ("key", "__key__")

_MAX_LINE = 2**26
"""Longest line of the worker: names of columns, or the texts of a row."""


def read_parquet(stream: BinaryIO, shard: Shard, options: ReadOptions, fetch: Fetch) -> Iterator[ShardImage]:
    """Yield each row's picture: bytes, Hugging Face's ``{bytes, path}``, or a URL, whose download is begun.

    Without a key column, keys are ``NAME/0``, ``NAME/1``, ... with the shard's name.

    Raises:
        UsageError: there is no such column.
        DamagedShardError: the file is damaged, after what precedes.
    """
    required("pyarrow.parquet")
    size = stream.seek(0, io.SEEK_END)
    with _Worker(stream) as worker:
        worker.tell({"size": size})
        names = worker.answer()[0]["columns"]
        image = _column(options.image_column, IMAGE_COLUMNS, names, shard, "--image-column")
        key = next((name for name in KEY_COLUMNS if name in names), None)
        if options.key_column is not None:
            key = _column(options.key_column, (), names, shard, "--key-column")
        wanted = names if options.texts else [image, *([key] if key else [])]
        worker.tell({"image": image, "key": key, "texts": options.texts, "columns": wanted})
        number = given = 0
        while True:
            head, payload = worker.answer()
            if "end" in head:
                return
            if number > size:
                raise DamagedShardError("is damaged: it claims to have more rows than bytes")
            given += len(payload)
            require_little(given, size)
            yield _entry(head, payload, shard, number, fetch)
            number += 1


def _entry(head: Mapping[str, Any], payload: bytes, shard: Shard, number: int, fetch: Fetch) -> ShardImage:
    name = head.get("key", f"{shard.name}/{number}")
    content: Content | None = None
    if len(name) > MAX_KEY:
        content = ImageError(f"has a key of more than {MAX_KEY:,} characters", "Name another column: --key-column.")
        name = f"{shard.name}/{number}"
    path = f"{shard.path}/{name if 'key' in head else number}"
    texts: dict[str, Any] = {}
    if "long" in head:
        texts["json"] = ImageError(f"has texts of {head['long']} bytes, which are too long for a prompt")
    elif "texts" in head:
        texts = {"json": head["texts"], **({"txt": head["texts"]["txt"]} if "txt" in head["texts"] else {})}
    if content is None and head["value"] == "large":
        content = too_many_bytes(path, DEFAULT_LIMITS)
    elif content is None:
        content = content_of(_cell(head["value"], payload), path, fetch)
    return ShardImage(path, name, shard, content, texts)


def _cell(kind: str, payload: bytes) -> Any:
    """Return what a cell holds: bytes, text, None, or for anything else an empty tuple."""
    if kind == "text":
        return payload.decode("utf-8", "surrogatepass")
    return payload if kind == "bytes" else None if kind == "none" else ()


class _Worker:
    """A process that reads one file, as a context manager. Its methods raise DamagedShardError."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._process = start_worker(parquet_worker.__file__)
        self._asked_at: float | None = None
        self._is_late = False
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="watch parquet", daemon=True).start()

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        end_worker(self._process)

    def tell(self, message: Mapping[str, Any], data: bytes = b"") -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n" + data)
            self._process.stdin.flush()
        except OSError as error:
            raise self._died() from error

    def answer(self) -> tuple[dict[str, Any], bytes]:
        """Return the worker's next line, and the bytes that follow it, after it was given what it asked to read."""
        while True:
            head, payload = self._next()
            if "damage" in head:
                raise DamagedShardError(f"is damaged, or not a parquet file: {head['damage']}")
            if "read" not in head:
                return head, payload
            offset, size = head["read"]
            self._stream.seek(offset)
            data = self._stream.read(size)
            self.tell({"bytes": len(data)}, data)

    def _next(self) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        self._asked_at = time.monotonic()
        try:
            head: dict[str, Any] = json.loads(self._process.stdout.readline(_MAX_LINE))
            size = min(int(head.get("payload", 0)), DEFAULT_LIMITS.max_bytes)
            payload = self._process.stdout.read(size)
        except (ValueError, OSError) as error:
            raise self._died() from error
        finally:
            self._asked_at = None
        if len(payload) < size or self._is_late:
            raise self._died()
        return head, payload

    def _watch(self) -> None:
        while not self._ended.wait(1):
            since = self._asked_at
            if since is not None and time.monotonic() - since > MAX_PICTURE_SECONDS:
                self._is_late = True
                self._process.kill()

    def _died(self) -> DamagedShardError:
        how = f"takes longer than {MAX_PICTURE_SECONDS:g} seconds" if self._is_late else "crashes its reader"
        return DamagedShardError(f"is damaged: it {how}")


def content_of(value: Any, path: str, fetch: Fetch) -> Content:
    """Return what a cell holds: a picture's bytes, Hugging Face's ``{bytes, path}`` or a URL, else an error."""
    value = cell_value(value)
    if isinstance(value, bytes):
        return value if len(value) <= DEFAULT_LIMITS.max_bytes else too_many_bytes(path, DEFAULT_LIMITS)
    if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
        if len(value) > MAX_URL:
            return ImageError(f"has a URL of {len(value):,} characters", f"URLs have at most {MAX_URL:,}.")
        return fetch(value)
    if value is None:
        return ImageError("has no picture")
    return ImageError("is neither a picture's bytes nor a URL", "Name the column of pictures: --image-column.")


def _column(asked: str | None, usual: Sequence[str], names: Sequence[str], shard: Shard, flag: str) -> str:
    if asked is None:
        asked = next((name for name in usual if name in names), None)
        if asked is None:
            raise UsageError(f"{shard.path} has no column that is called like pictures", _columns_hint(names, flag))
    elif asked not in names:
        raise UsageError(f"{shard.path} has no column {asked!r}", suggest(asked, names) + _columns_hint(names, flag))
    return asked


def _columns_hint(names: Sequence[str], flag: str) -> str:
    return f"Name one of its columns with {flag}: {', '.join(names[:20])}."
