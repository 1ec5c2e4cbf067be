"""Read shards one after the other, as the pictures in them."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from mllama_cli.captioning.shards.downloads import Downloads, Fetch
from mllama_cli.captioning.shards.entry import ReadOptions, Shard, ShardImage
from mllama_cli.captioning.shards.parquet import read_parquet
from mllama_cli.captioning.shards.store import StoreError
from mllama_cli.captioning.shards.stores import store_of
from mllama_cli.captioning.shards.tar import DamagedShardError
from mllama_cli.captioning.shards.webdataset import read_tar
from mllama_cli.core.errors import MllamaError


@dataclass(frozen=True)
class ShardBegun:
    shard: Shard


@dataclass(frozen=True)
class ShardRead:
    """A shard was read to its end, or to where it is damaged."""

    shard: Shard
    damage: str = ""


@dataclass(frozen=True)
class ShardUnreadable:
    """A shard could not be read to its end: it is left to another run."""

    shard: Shard
    error: MllamaError


ReadItem = ShardBegun | ShardImage | ShardRead | ShardUnreadable


def read_shards(shards: Iterable[Shard | None], options: ReadOptions) -> Iterator[ReadItem | None]:
    """Yield the pictures of each shard between its ShardBegun and its ShardRead or ShardUnreadable.

    None in ``shards`` means that the next one is not free yet, and is passed on.
    """
    downloads = Downloads()
    try:
        for shard in shards:
            if shard is None:
                yield None
                continue
            yield ShardBegun(shard)
            try:
                yield from read_shard(shard, options, downloads.begin)
            except DamagedShardError as error:
                if error.cut:
                    reason = DamagedShardError("is cut off here")
                    yield ShardImage(f"{shard.path}/{error.cut}", error.cut, shard, reason)
                yield ShardRead(shard, error.message)
            except MllamaError as error:
                yield ShardUnreadable(shard, error)
            else:
                yield ShardRead(shard)
    except BaseException:
        downloads.close(cancel=True)
        raise
    downloads.close()  # the last downloads are still waited for


def read_shard(shard: Shard, options: ReadOptions, fetch: Fetch) -> Iterator[ShardImage]:
    """Yield a shard's pictures. Raise DamagedShardError, after what precedes the damage, StoreError or UsageError."""
    with closing(store_of(shard.path).open(shard.path)) as stream:
        try:
            if shard.form == "tar":
                yield from read_tar(stream, shard, options)
            else:
                yield from read_parquet(stream, shard, options, fetch)
        except OSError as error:
            raise StoreError(f"{shard.path}: {error.strerror or error}", "Check the disk, and try again.") from error


def item_bytes(item: ReadItem) -> int:
    return item.size if isinstance(item, ShardImage) else 0
