"""Write captions from Ray's tasks: each file appears whole, once, and says which pictures it has."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Datasink
from ray.data.block import BlockAccessor

from mllama_cli.captioning.shards.entry import Shard, ShardImage
from mllama_cli.captioning.shards.outputs import ParquetOutput, Row
from mllama_cli.captioning.shards.stores import store_of
from mllama_cli.core.errors import CaptionError


class CaptionSink(Datasink[tuple[int, int]]):
    """Parquet files in a folder. ``pictures`` and ``failed`` are the counts, once all is written."""

    def __init__(self, folder: str, columns: Sequence[str] | None) -> None:
        super().__init__()
        self._folder, self._columns = folder.rstrip("/"), columns
        self.pictures = self.failed = 0

    def write(self, blocks: Iterable[Any], ctx: Any) -> tuple[int, int]:
        """Write a task's rows into one file, named by their keys. Return how many there are, and how many failed."""
        rows: list[Row] = [row for block in blocks for row in BlockAccessor.for_block(block).to_arrow().to_pylist()]
        if not rows:
            return 0, 0
        output = ParquetOutput(self._columns, ("shard",))
        for row in rows:
            output.add(_ENTRY, row)
        name = hashlib.sha256("\n".join(f"{row['shard']}\0{row['key']}" for row in rows).encode()).hexdigest()[:32]
        try:  # a task that is done again finds its file
            store_of(self._folder).publish(output.finished({"rows": len(rows)}), f"{self._folder}/{name}.parquet")
        finally:
            output.close()
        return len(rows), sum(row["error"] is not None for row in rows)

    def on_write_complete(self, write_result: Any) -> None:
        for pictures, failed in write_result.write_returns:
            self.pictures += pictures
            self.failed += failed


_ENTRY = ShardImage("", "", Shard("", "", "tar"), b"")


def written_keys(folder: str) -> "np.ndarray[Any, Any]":
    """Return the sorted hashes of the pictures that have a row in a folder: 8 bytes for each, so that all fit."""
    store, hashes = store_of(folder), [np.zeros(0, np.uint64)]
    for name in store.names(folder):
        if "/" in name or not name.endswith(".parquet"):
            continue
        with store.open(f"{folder.rstrip('/')}/{name}") as file:
            try:
                table = pq.read_table(file, columns=["shard", "key"])
            except (pa.ArrowException, ValueError) as error:
                raise CaptionError(
                    f"{folder}/{name} cannot be read: {error}", "Move away what is not ours, and what is damaged."
                ) from error
        pairs = zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True)
        hashes.append(np.array([key_hash(shard, key) for shard, key in pairs], np.uint64))
    return np.sort(np.concatenate(hashes))


def key_hash(shard: str, key: str) -> int:
    """Return 64 bits of a hash of a picture: of 100 million, two have the same with a probability of 0.03 %."""
    return int.from_bytes(hashlib.blake2b(f"{shard}\0{key}".encode("utf-8", "replace"), digest_size=8).digest(), "big")


def is_written(hashes: "np.ndarray[Any, Any]", shard: str, key: str) -> bool:
    """Return whether a picture is among those of ``written_keys``."""
    value = np.uint64(key_hash(shard, key))
    index = int(np.searchsorted(hashes, value))
    return index < len(hashes) and bool(hashes[index] == value)
