"""A small SQLite file of the user's: schema, transactions, and errors in the user's terms.

It uses a rollback journal instead of WAL, because home folders of GPU servers are often on NFS, where WAL's shared
memory does not work, because images are written once instead of twice, and because read-only folders can be read.
"""

import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mllama_cli.core.errors import MllamaError

APPLICATION_ID = 0x6D6C6C61  # "mlla": identifies our databases
BUSY_SECONDS = 15.0
"""Time limit for waiting until another process has written: usually milliseconds, a second for a large image."""


@dataclass(frozen=True)
class Schema:
    """The schema of a file and the type of its errors.

    Attributes:
        migrations: for each version of the schema, from 0, the statements that lead to the next.
        error: the error that is raised.
        moved_by: the environment variable that sets another folder, for hints.
    """

    migrations: tuple[tuple[str, ...], ...]
    error: type[MllamaError]
    moved_by: str


class Database:
    """One connection, opened when first needed. Safe to share between threads and processes."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self.schema = schema
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()  # completion asks for names from its own thread

    @property
    def exists(self) -> bool:
        try:
            return self.path.exists()
        except OSError as error:
            raise self._refused(error) from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give a consistent snapshot to read. Raise SQLite's errors as the schema's."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Commit everything that is written inside, or nothing. Raise SQLite's errors as the schema's."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                connection = self._connection = self._connection or self._open()
                connection.rollback()  # a Ctrl-C halfway through an earlier rollback may have left a transaction
                connection.execute(begin)
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    connection.rollback()
                    raise
            except sqlite3.Error as error:
                raise self.explained(error) from error

    def _open(self) -> sqlite3.Connection:
        self._create_private()
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = EXTRA")  # commits survive a power cut
            connection.execute("PRAGMA secure_delete = FAST")  # deleted text is erased from pages that stay in use
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        migrations = self.schema.migrations
        connection.execute("BEGIN")  # a consistent snapshot: another process may be creating the tables
        try:
            version = self._version(connection)
        finally:
            connection.rollback()
        if version == len(migrations):
            return
        if version == 0:  # must be set before the first table is created
            connection.execute("PRAGMA auto_vacuum = FULL")  # deleted images free disk space at once
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = self._version(connection)  # another process may have been faster
            for statements in migrations[version:]:
                for statement in statements:
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(migrations)}")
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise

    def _version(self, connection: sqlite3.Connection) -> int:
        """Return the file's schema version, 0 for an empty file. Raises the schema's error for an unknown one."""
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        ours = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not ours and not (empty and version == 0):
            raise self.schema.error(f"{self.path} is the database of another program", self._move_away())
        if version > (known := len(self.schema.migrations)):
            raise self.schema.error(
                f"{self.path} was written by a newer mllama (schema {version}; this one knows {known})",
                f"Update mllama, or set {self.schema.moved_by} to another folder for this version. "
                "Nothing was changed.",
            )
        return version

    def explained(self, error: sqlite3.Error) -> MllamaError:
        """Return our error for one of SQLite's."""
        path, kind = self.path, self.schema.error
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
        match code:
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_FORMAT:
                return self.damaged(str(error))
            case sqlite3.SQLITE_FULL:
                return kind(f"{path} cannot grow: the disk is full", "Free some space. What was saved is kept.")
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return kind(
                    f"{path} is locked by another program, for more than {BUSY_SECONDS:.0f} seconds",
                    "Close what else has it open, and try again.",
                )
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_AUTH:
                return kind(f"{path} cannot be written: {error}", self._ownership())
            case sqlite3.SQLITE_TOOBIG:
                return kind("A text or image is too large to be saved", "Leave it out.")
            case sqlite3.SQLITE_IOERR:
                return kind(f"{path}: the disk cannot be read or written: {error}", "Check the disk and its space.")
        return kind(f"{path}: {error}", self._move_away())

    def damaged(self, why: str) -> MllamaError:
        return self.schema.error(f"{self.path} is damaged: {why}", self._move_away())

    def _create_private(self) -> None:
        """Create the file and its folder with access for the user alone. An existing folder is not changed."""
        path = self.path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            mode = path.stat().st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                with suppress(OSError):  # another user's file, or a file system without permissions
                    path.chmod(0o600)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> MllamaError:
        return self.schema.error(f"{self.path} cannot be opened: {error.strerror or error}", self._ownership())

    def _ownership(self) -> str:
        return f"Check who may write in {self.path.parent}, or set {self.schema.moved_by} to a folder of yours."

    def _move_away(self) -> str:
        return f"Nothing was changed. Move it away and a new one is created: mv '{self.path}' '{self.path}.old'"
