"""Journal of changes to existing captions, so that a killed run can be resumed without changing a file twice.

A run is identified by its command: the same images, options and model. The same command resumes the run until it is
complete; then its entries are deleted, and the same command starts over. Before a caption file changes, a row with the
digest of its text is committed: while the file still has that text, the change has not been made.
"""

import hashlib
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
    ),
    CaptionError,
    moved_by="XDG_STATE_HOME",
)


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

    def forget(self) -> None:
        """Delete the entries of a run that is complete."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM entries WHERE run = ?", (self.run,))

    def close(self) -> None:
        self._database.close()


def digest(text: str) -> str:
    """Return the digest of a caption file's text; empty if there is none."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32] if text else ""
