"""Read pictures and their addresses from a parquet file."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, BinaryIO

from mllama_cli.captioning.shards.entry import Content, ReadOptions, Shard, ShardImage
from mllama_cli.captioning.shards.packages import required
from mllama_cli.captioning.shards.tar import DamagedShardError
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError, MllamaError, UsageError
from mllama_cli.core.text import suggest
from mllama_cli.processing.limits import DEFAULT_LIMITS, too_many_bytes

if TYPE_CHECKING:
    import pyarrow as pa

Fetch = Callable[[str], str | Future[ImagePart]]

ROWS_AT_ONCE = 16
"""Rows that are decoded together: their pictures are in memory twice."""

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "img", "url", "image_url", "URL")
KEY_COLUMNS = ("key", "__key__")


def read_parquet(stream: BinaryIO, shard: Shard, options: ReadOptions, fetch: Fetch) -> Iterator[ShardImage]:
    """Yield each row's picture: bytes, Hugging Face's ``{bytes, path}``, or a URL, whose download is begun.

    Without a key column, keys are ``NAME/0``, ``NAME/1``, ... with the shard's name.

    Raises:
        UsageError: there is no such column.
        DamagedShardError: the file is damaged, after what precedes.
    """
    pa, pq = required("pyarrow"), required("pyarrow.parquet")
    try:
        file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=2**20)
        names = file.schema_arrow.names
        image = _column(options.image_column, IMAGE_COLUMNS, names, shard, "--image-column")
        key = next((name for name in KEY_COLUMNS if name in names), None)
        if options.key_column is not None:
            key = _column(options.key_column, (), names, shard, "--key-column")
        wanted = names if options.texts else [image, *([key] if key else [])]
        number = 0
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=wanted):
            for row in _rows(batch, image):
                value = row.pop(image)
                name = str(row[key]) if key is not None and row[key] is not None else f"{shard.name}/{number}"
                texts = {"json": row, **({"txt": row["txt"]} if "txt" in row else {})} if options.texts else {}
                path = f"{shard.path}/{name if key is not None else number}"
                yield ShardImage(path, name, shard, content_of(value, path, fetch), texts)
                number += 1
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        if isinstance(error, MllamaError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DamagedShardError(f"is damaged, or not a parquet file: {reason}") from error


def _rows(batch: "pa.RecordBatch", image: str) -> Iterator[dict[str, Any]]:
    names = batch.schema.names
    for row in zip(*batch.columns, strict=True):
        yield {name: value.as_py() for name, value in zip(names, row, strict=True)}


def content_of(value: Any, path: str, fetch: Fetch) -> Content:
    """Return what a cell holds: a picture's bytes, Hugging Face's ``{bytes, path}`` or a URL, else an error."""
    if isinstance(value, dict):  # an image of a Hugging Face data set
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value if len(value) <= DEFAULT_LIMITS.max_bytes else too_many_bytes(path, DEFAULT_LIMITS)
    if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
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
