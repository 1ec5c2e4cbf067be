"""Run an iterator in a thread, some items ahead of its consumer."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")

MAX_ITEMS = 64
MAX_BYTES = 256 * 2**20
"""What is read ahead: enough to bridge a store's pauses, little enough for memory. One item may exceed it."""


class ReadAhead(Generic[ItemT]):
    """Yield the items of ``source`` without waiting for them. Use it as a context manager, which stops the thread.

    Args:
        source: may yield None where it has to wait for others.
        size: the bytes of an item.
    """

    def __init__(self, source: Iterator[ItemT | None], size: Callable[[ItemT], int]) -> None:
        self._source, self._size = source, size
        self._items: deque[tuple[ItemT, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="read shards", daemon=True)

    def __enter__(self) -> "ReadAhead[ItemT]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Tell the thread to stop, without waiting for a store that does not answer."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()

    def items(self) -> Generator[ItemT | None]:
        """Yield each item, and None while the next is not there. Raise the error of the source after what precedes."""
        while True:
            with self._changed:
                if self._items:
                    item, size = self._items.popleft()
                    self._bytes -= size
                    self._changed.notify_all()
                elif self._error is not None:
                    raise self._error
                elif self._ended:
                    return
                else:
                    item = None
            yield item

    def _run(self) -> None:
        try:
            for item in self._source:
                if not self._put(item):
                    return
        except BaseException as error:  # the consumer reports it
            self._error = error
        finally:
            self._ended = True

    def _put(self, item: ItemT | None) -> bool:
        """Add an item when there is room. Return False if nobody wants it any more."""
        size = self._size(item) if item is not None else 0
        with self._changed:
            while not self._stopped and self._items and self._is_full(size):
                self._changed.wait()
            if item is not None:
                self._items.append((item, size))
                self._bytes += size
            return not self._stopped

    def _is_full(self, size: int) -> bool:
        return len(self._items) >= MAX_ITEMS or self._bytes + size > MAX_BYTES
