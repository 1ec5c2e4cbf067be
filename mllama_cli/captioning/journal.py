"""Journal of changes to existing captions, so that a killed run can be resumed without changing a file twice.

A run is identified by its command: the same images, options and model. The same command resumes the run until it is
complete. The entries of a complete run stay for a minute, because its process may be killed between its last caption
and its end, and whoever repeats the command then does not want every caption added again. Later it starts over.

Before a caption file changes, a row with the digest of what is in it is committed: while the file still has that, the
change has not been made.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mllama_cli.core.errors import CaptionError
from mllama_cli.system.database import Database, Schema
from mllama_cli.system.paths import state_folder

_SCHEMA = Schema(
    (
        (
            """CREATE TABLE entries (
                run TEXT NOT NULL,
                path TEXT NOT NULL,
                stamp TEXT NOT NULL,
                before TEXT NOT NULL,
                caption TEXT NOT NULL,
                PRIMARY KEY (run, path)
            ) WITHOUT ROWID""",
        ),
        ("CREATE TABLE finished (run TEXT PRIMARY KEY, time REAL NOT NULL) WITHOUT ROWID",),
    ),
    CaptionError,
    moved_by="XDG_STATE_HOME",
)

KEPT_SECONDS = 60.0
"""Time for which the entries of a complete run are kept."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """``stamp`` identifies the image's content, ``before`` is the digest of the caption file before the change."""

    stamp: str
    before: str
    caption: str


class CaptionJournal:
    """The entries of one run. Methods raise CaptionError.

    Args:
        run: identifies the run (a digest of the command).
        path: the file; ``captions.db`` in the user's state folder by default.
    """

    def __init__(self, run: str, path: Path | None = None) -> None:
        self.run = run
        self._database = Database(path or state_folder() / "captions.db", _SCHEMA)

    def begin(self, *, keep: bool) -> bool:
        """Forget what the same command did if it was completed, unless that is just past and ``keep`` is set.

        Return whether it was kept.
        """
        with self._database.writing() as connection:
            row = connection.execute("SELECT time FROM finished WHERE run = ?", (self.run,)).fetchone()
            if row is None:
                return False
            if keep and 0 <= time.time() - row[0] < KEPT_SECONDS:
                return True
            for table in ("entries", "finished"):
                connection.execute(f"DELETE FROM {table} WHERE run = ?", (self.run,))
            return False

    def entries(self) -> Iterator[tuple[str, JournalEntry]]:
        """Yield (image path, entry) for every change that this run has begun."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT path, stamp, before, caption FROM entries WHERE run = ?", (self.run,))
            for path, *entry in rows:
                yield path, JournalEntry(*entry)

    def get(self, path: str) -> JournalEntry | None:
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT stamp, before, caption FROM entries WHERE run = ? AND path = ?", (self.run, path)
            ).fetchone()
        return JournalEntry(*row) if row else None

    def add(self, path: str, entry: JournalEntry) -> None:
        """Record a change that is about to be made, durably."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)",
                (self.run, path, entry.stamp, entry.before, entry.caption),
            )
            connection.execute("DELETE FROM finished WHERE run = ?", (self.run,))

    def finish(self) -> None:
        """Mark the run as complete."""
        with self._database.writing() as connection:
            connection.execute("INSERT OR IGNORE INTO finished VALUES (?, ?)", (self.run, time.time()))

    def close(self) -> None:
        self._database.close()


def digest(data: bytes) -> str:
    """Return the digest of what is in a caption file; empty if there is nothing."""
    return hashlib.sha256(data).hexdigest()[:32] if data else ""
