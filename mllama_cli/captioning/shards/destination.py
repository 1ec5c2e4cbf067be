"""Where the pipeline stores the captions of shards: in order, one file for each shard, which appears whole."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from mllama_cli.captioning.destinations import Lease, LeaseRefusedError
from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.captioning.shards.entry import Shard, ShardImage
from mllama_cli.captioning.shards.outputs import SUFFIXES, OutputForm, Row, ShardOutput, new_output, row_of
from mllama_cli.captioning.shards.reading import ReadItem, ShardBegun, ShardRead, ShardUnreadable
from mllama_cli.captioning.shards.store import Store
from mllama_cli.core.caption_events import CaptionRecord, ShardDone, ShardEvent, ShardFailed
from mllama_cli.core.events import FinishReason

PUBLISHED_AT_ONCE = 2


@dataclass(eq=False)
class OpenShard:
    """A shard in work. Rows come in any order and are written in that of the pictures."""

    shard: Shard
    output: ShardOutput
    keys: set[str] = field(default_factory=set)
    count: int = 0
    written: int = 0
    failures: int = 0
    damage: str = ""
    is_read: bool = False
    abandoned: bool = False
    waiting: dict[int, tuple[ShardImage | None, Row]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return self.is_read and self.written == self.count

    def add(self, index: int, entry: ShardImage, row: Row) -> None:
        # While an earlier answer takes long, many rows wait: not with their pictures, unless they are needed.
        self.waiting[index] = entry if self.output.has_pictures else None, row
        while (following := self.waiting.pop(self.written, None)) is not None:
            self.written += 1
            self.failures += following[1]["error"] is not None
            if not self.abandoned:
                self.output.add(*following)


class ShardDestination:
    """A CaptionDestination for ``ShardImage``.

    Args:
        folder: where the outputs are written; a path or an address.
        columns: the fields of captions that are JSON.
        released: called with a shard's name when it is done or left to another run.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        form: OutputForm,
        columns: Sequence[str] | None = None,
        released: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._store, self._folder, self._form, self._columns = store, folder.rstrip("/"), form, columns
        self._released = released
        self._open: dict[str, OpenShard] = {}
        self._publisher = ThreadPoolExecutor(PUBLISHED_AT_ONCE, thread_name_prefix="publish")
        self._publishing: deque[Future[ShardEvent]] = deque()
        self._events: deque[ShardEvent] = deque()

    def follow(self, items: Iterable[ReadItem | None]) -> Iterator[ShardImage | None]:
        """Yield the pictures in what was read, and keep account of the shards that they are in."""
        for item in items:
            self._collect(wait=False)
            if item is None or isinstance(item, ShardImage):
                yield item
            elif isinstance(item, ShardBegun):
                self._open[item.shard.name] = OpenShard(item.shard, new_output(self._form, self._columns))
            else:
                opened = self._open[item.shard.name]
                opened.is_read = True
                if isinstance(item, ShardRead):
                    opened.damage = item.damage
                else:
                    self._abandon(opened, item)
                self._close_if_complete(opened)

    def events(self) -> Iterator[ShardEvent]:
        """Yield what has happened to shards since the last call."""
        while self._events:
            yield self._events.popleft()

    def is_done(self, entry: ImageEntry) -> bool:
        return False

    def acquire(self, entry: ImageEntry) -> Lease:
        assert isinstance(entry, ShardImage)
        opened = self._open[entry.shard.name]
        if entry.key in opened.keys:
            raise LeaseRefusedError(f"its key {entry.key} is in the shard twice")
        opened.keys.add(entry.key)
        opened.count += 1
        return _RowLease(self, opened, opened.count - 1, entry)

    def existing(self, entry: ImageEntry) -> str:
        return ""

    def finish(self, *, exhausted: bool, complete: bool) -> None:
        """Wait until the complete shards are published; drop the others. Raise StoreError."""
        try:
            self._collect(wait=True)
        finally:
            self._publisher.shutdown(cancel_futures=True)
            for opened in self._open.values():
                opened.output.close()
            self._open.clear()

    def add(self, opened: OpenShard, index: int, entry: ShardImage, row: Row) -> str:
        opened.add(index, entry, row)
        self._close_if_complete(opened)
        return self.path(opened.shard)

    def row(self, entry: ShardImage, record: CaptionRecord, finish_reason: FinishReason | None) -> Row:
        return row_of(entry.key, record, finish_reason, self._columns)

    def path(self, shard: Shard) -> str:
        return f"{self._folder}/{shard.name}{SUFFIXES[self._form]}"

    def _abandon(self, opened: OpenShard, item: ShardUnreadable) -> None:
        opened.abandoned = True
        self._events.append(ShardFailed(item.shard.path, item.error.message, item.error.hint))

    def _close_if_complete(self, opened: OpenShard) -> None:
        if not opened.is_complete:
            return
        del self._open[opened.shard.name]
        if opened.abandoned:
            opened.output.close()
            self._released(opened.shard.name)
        else:
            self._publishing.append(self._publisher.submit(self._publish, opened))

    def _publish(self, opened: OpenShard) -> ShardEvent:
        shard, about = opened.shard, {"pictures": opened.count, "failed": opened.failures, "damage": opened.damage}
        try:
            file = opened.output.finished({"shard": shard.path, **about})
            is_new = self._store.publish(file, self.path(shard))
        finally:
            opened.output.close()
        self._released(shard.name)
        return ShardDone(shard.path, self.path(shard), opened.count, opened.failures, opened.damage, is_new)

    def _collect(self, *, wait: bool) -> None:
        """Take the results of publishing. Raise what prevented it, after which no other shard could be written."""
        while self._publishing and (wait or self._publishing[0].done()):
            self._events.append(self._publishing.popleft().result())


class _RowLease:
    def __init__(self, destination: ShardDestination, opened: OpenShard, index: int, entry: ShardImage) -> None:
        self._destination, self._opened, self._index, self._entry = destination, opened, index, entry

    def write(self, record: CaptionRecord, finish_reason: FinishReason = "stop") -> str:
        row = self._destination.row(self._entry, record, finish_reason)
        return self._destination.add(self._opened, self._index, self._entry, row)

    def release(self, record: CaptionRecord | None = None) -> None:
        if record is not None:
            row = self._destination.row(self._entry, record, None)
            self._destination.add(self._opened, self._index, self._entry, row)
