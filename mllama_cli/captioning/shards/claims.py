"""Share shards out among workers without a server: a lease object for each shard in work.

A lease is created only if there is none, which object stores and file systems do in one step. Its holder writes a new
beat into it from time to time. A lease whose beat has not changed for a while was a dead worker's, and is taken over by
creating the next one: ``NAME.1``, ``NAME.2``, ... Since clocks of machines differ, only the clock of the watcher
counts. Should a worker that seemed dead go on, two caption the same shard; its output is still written once, by the
first that is done.
"""

import json
import os
import random
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

from mllama_cli.captioning.shards.entry import Shard
from mllama_cli.captioning.shards.store import Store, StoreError

CLAIMS = "_claims"
"""The folder of leases in that of the outputs. Readers of data sets leave out names with an underscore."""

RENEW_SECONDS = 15.0
STALE_SECONDS = 60.0
"""A lease is renewed several times before it is taken for one that a dead worker has left."""
LIST_SECONDS = 30.0
"""How often to look which shards others have done, when there is nothing else to do or much has been taken."""


def worker_name() -> str:
    """Return a name for this worker that no other has."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"


@dataclass(eq=False)
class Claim:
    """The right to caption a shard, until it is released."""

    path: str
    owner: str
    beat: int = 0

    def text(self) -> bytes:
        return json.dumps({"worker": self.owner, "beat": self.beat}).encode()


@dataclass
class _Watched:
    """A lease of another worker: its ``number``, and when ``text`` was first seen."""

    number: int
    text: bytes = b""
    since: float = field(default_factory=monotonic)

    def see(self, text: bytes) -> None:
        if text != self.text:
            self.text, self.since = text, monotonic()


class Claims:
    """The shards of a run, of which this worker takes one after the other. Use it as a context manager.

    Args:
        folder: where the outputs are written.
        suffix: the end of an output's name.
    """

    def __init__(self, store: Store, folder: str, shards: Sequence[Shard], suffix: str, owner: str) -> None:
        self._store, self._folder, self._suffix, self._owner = store, folder.rstrip("/"), suffix, owner
        self._left = {shard.name: shard for shard in shards}
        self._done: set[str] = set()
        self._held: dict[str, Claim] = {}
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="renew leases", daemon=True)
        self._listed = -LIST_SECONDS

    def __enter__(self) -> "Claims":
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._renewing.join()
        for name in list(self._held):
            with suppress(StoreError):
                self.release(name)

    def in_all(self) -> int:
        """Return how many shards have no output yet, as far as is known."""
        return len(self._left) + len(self._held)

    def take(self) -> Iterator[Shard | None]:
        """Yield each shard that this worker has claimed; None while all that are left are others'.

        Ends when every shard is done.
        """
        pause = 0.0
        while self._left:
            self._look(pause)
            taken = False
            for name in self._order():
                if self._stopped.is_set():
                    return
                if (shard := self._claimed(name)) is not None:
                    taken = True
                    yield shard
                    if monotonic() - self._listed >= LIST_SECONDS:
                        break  # others have done many meanwhile
            if self._left and not taken:
                yield None
            # Others' last shards may be done in a moment, or in minutes.
            pause = min(1.0 if taken else max(1.0, 2 * pause), RENEW_SECONDS / 3)

    def release(self, name: str) -> None:
        """Give up the lease of a shard, which is done, or is left to another worker."""
        with self._lock:
            claim = self._held.pop(name, None)
            if claim is not None:
                self._store.remove(claim.path)

    def _look(self, pause: float) -> None:
        """Learn which shards are done and, if no other is free, who holds the leases of those that are left.

        This is done so many seconds after the last time.
        """
        if self._stopped.wait(max(0.0, self._listed + pause - monotonic())):
            return
        self._listed = monotonic()
        leases: dict[str, list[int]] = {}
        for path in self._store.names(self._folder):
            if path.startswith(f"{CLAIMS}/"):
                name, _, number = path.removeprefix(f"{CLAIMS}/").rpartition(".")
                if number.isdigit():
                    leases.setdefault(name, []).append(int(number))
            elif path.endswith(self._suffix):
                self._done.add(path.removesuffix(self._suffix))
        for name in self._done & self._left.keys():
            del self._left[name]
        for name in self._done & leases.keys() - self._held.keys():
            for done in leases.pop(name):  # its worker ended between the two steps of finishing
                self._store.remove(self._lease(name, done))
        held = {name: max(numbers) for name, numbers in leases.items() if name in self._left}
        known = self._watched
        self._watched = {
            name: known[name] if name in known and known[name].number == number else _Watched(number)
            for name, number in held.items()
        }
        if len(self._watched) == len(self._left):
            for name, watched in self._watched.items():
                watched.see(self._store.read(self._lease(name, watched.number)) or b"")

    def _order(self) -> list[str]:
        """Return the shards to try: first those that nobody holds, from a random one on; then what was abandoned."""
        free = [name for name in self._left if name not in self._watched]
        start = random.randrange(len(free)) if free else 0
        now = monotonic()
        stale = [name for name, watched in self._watched.items() if now - watched.since >= STALE_SECONDS]
        return [*free[start:], *free[:start], *(name for name in stale if name in self._left)]

    def _claimed(self, name: str) -> Shard | None:
        """Return the shard if its next lease could be created."""
        watched = self._watched.get(name)
        number = watched.number + 1 if watched is not None else 1
        claim = Claim(self._lease(name, number), self._owner)
        if not self._store.create(claim.path, claim.text()):
            self._watched[name] = _Watched(number)
            return None
        if watched is not None:
            self._store.remove(self._lease(name, watched.number))
            del self._watched[name]
        shard = self._left.pop(name)
        if self._store.exists(f"{self._folder}/{name}{self._suffix}"):  # done since it was listed
            self._store.remove(claim.path)
            return None
        with self._lock:
            self._held[name] = claim
        return shard

    def _lease(self, name: str, number: int) -> str:
        return f"{self._folder}/{CLAIMS}/{name}.{number}"

    def _renew(self) -> None:
        while not self._stopped.wait(RENEW_SECONDS):
            for name in list(self._held):
                with self._lock, suppress(StoreError):  # the next attempt may succeed before the lease is stale
                    if (claim := self._held.get(name)) is not None:  # not released meanwhile
                        claim.beat += 1
                        self._store.write(claim.path, claim.text())
