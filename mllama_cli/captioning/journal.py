"""What a run that changes existing captions has done already: so that it can be killed, and adds nothing twice.

A run is known by its command: the same pictures, options and model. While it is not finished, the same command goes on
with it; when it is finished it is forgotten, and the same command begins anew. A row is committed before the caption
file changes, with the digest of what the file held; as long as the file still holds that, the change is not made.
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
class Entry:
    """``stamp`` tells a picture's content, ``before`` the digest of the caption file's text before the change."""

    stamp: str
    before: str
    caption: str


class Journal:
    """The entries of one run. Any method may raise CaptionError.

    Args:
        run: what tells this run from others (a digest of the command).
        path: the file; ``captions.db`` in the user's state folder by default.
    """

    def __init__(self, run: str, path: Path | None = None) -> None:
        self.run = run
        self._database = Database(path or state_folder() / "captions.db", _SCHEMA)

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """(picture's path, entry) of all that this run has begun to change."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT path, stamp, before, caption FROM entries WHERE run = ?", (self.run,))
            for path, *entry in rows:
                yield path, Entry(*entry)

    def get(self, path: str) -> Entry | None:
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT stamp, before, caption FROM entries WHERE run = ? AND path = ?", (self.run, path)
            ).fetchone()
        return Entry(*row) if row else None

    def add(self, path: str, entry: Entry) -> None:
        """Say what is about to be done. When this returns, it is on the disk."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)",
                (self.run, path, entry.stamp, entry.before, entry.caption),
            )

    def forget(self) -> None:
        """The run is finished."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM entries WHERE run = ?", (self.run,))

    def close(self) -> None:
        self._database.close()


def digest(text: str) -> str:
    """Tells a caption file's text; empty for none."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32] if text else ""
