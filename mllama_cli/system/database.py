"""A small SQLite file of the user's: schema, transactions, and errors in the user's terms.

It uses a rollback journal instead of WAL, because home folders of GPU servers are often on NFS, where WAL's shared
memory does not work, because images are written once instead of twice, and because read-only folders can be read.

What has the file's name may not be ours (``database_file``): a link is followed only to a database of ours, and another
user's file is only read.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mllama_cli.core.errors import MllamaError
from mllama_cli.system.database_file import create_private, make_private, require_safe
from mllama_cli.system.files import status_of
from mllama_cli.system.safe_files import UnsafeFileError, is_own

APPLICATION_ID = 0x6D6C6C61  # "mlla": identifies our databases
BUSY_SECONDS = 15.0
"""Time limit for waiting until another process has written: usually milliseconds, a second for a large image."""

_INCREMENTAL = 2
"""SQLite's number of the mode in which free pages stay in the file until they are vacuumed."""


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
        with self._connected() as connection, _committed(connection, "BEGIN"):
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Commit everything that is written inside, or nothing. Raise SQLite's errors as the schema's."""
        with self._connected() as connection:
            self._require_own()
            with _committed(connection, "BEGIN IMMEDIATE"):
                yield connection

    def delete(self, work: Callable[[sqlite3.Connection], int]) -> int:
        """Return what ``work`` returns, which deletes rows. It needs little free space on the disk: about 64 kB.

        A file shrinks by moving its last pages into the free ones, each of which is first copied to the journal. Where
        that is too much for the disk, the file shrinks page by page.
        """
        try:
            with self.writing() as connection:
                return work(connection)
        except MllamaError as error:
            if _code(error.__cause__) != sqlite3.SQLITE_FULL:
                raise
        with self._connected() as connection:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            try:
                with _committed(connection, "BEGIN IMMEDIATE"):
                    count = work(connection)
                while connection.execute("PRAGMA freelist_count").fetchone()[0]:
                    connection.execute("PRAGMA incremental_vacuum(1)").fetchall()
            finally:
                _free_pages_at_once(connection)
        return count

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                connection = self._connection = self._connection or self._open()
                connection.rollback()  # a Ctrl-C halfway through an earlier rollback may have left a transaction
                yield connection
            except sqlite3.Error as error:
                raise self.explained(error) from error

    def _open(self) -> sqlite3.Connection:
        try:
            create_private(self.path)
            require_safe(self.path)
        except UnsafeFileError as error:
            hint = f"Nothing was changed. Move it away, or set {self.schema.moved_by} to a folder of yours."
            raise self.schema.error(str(error.strerror), hint) from error
        except OSError as error:
            raise self._refused(error) from error
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = EXTRA")  # commits survive a power cut
            connection.execute("PRAGMA secure_delete = FAST")  # deleted text is erased from pages that stay in use
            self._migrate(connection)
            make_private(self.path)
            if connection.execute("PRAGMA auto_vacuum").fetchone()[0] == _INCREMENTAL:  # see delete: it was killed
                _free_pages_at_once(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        migrations = self.schema.migrations
        with _committed(connection, "BEGIN"):  # a consistent snapshot: another process may be creating the tables
            version = self._version(connection)
        if version == len(migrations):
            return
        self._require_own()
        if version == 0:  # must be set before the first table is created
            connection.execute("PRAGMA auto_vacuum = FULL")  # deleted images free disk space at once
        with _committed(connection, "BEGIN IMMEDIATE"):
            version = self._version(connection)  # another process may have been faster
            for statements in migrations[version:]:
                for statement in statements:
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(migrations)}")

    def _version(self, connection: sqlite3.Connection) -> int:
        """Return the file's schema version, 0 for an empty file. Raises the schema's error for an unknown one."""
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        ours = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not ours and self.path.is_symlink():
            raise self.schema.error(f"{self.path} is a link to a file of another program", self._move_away())
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
        match _code(error):
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_FORMAT:
                return self.damaged(str(error))
            case sqlite3.SQLITE_FULL:
                return kind(
                    f"{path} cannot grow: the disk is full",
                    "Free some space, also before deleting. What was saved is kept.",
                )
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

    def _require_own(self) -> None:
        """Raise the schema's error for another user's file, which would get what is the user's own."""
        status = status_of(self.path)
        if status is not None and not is_own(status):
            raise self.schema.error(
                f"{self.path} cannot be written: it belongs to another user (id {status.st_uid})", self._ownership()
            )

    def _refused(self, error: OSError) -> MllamaError:
        return self.schema.error(f"{self.path} cannot be opened: {error.strerror or error}", self._ownership())

    def _ownership(self) -> str:
        return f"Check who may write in {self.path.parent}, or set {self.schema.moved_by} to a folder of yours."

    def _move_away(self) -> str:
        return f"Nothing was changed. Move it away and a new one is created: mv '{self.path}' '{self.path}.old'"


@contextmanager
def _committed(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def _free_pages_at_once(connection: sqlite3.Connection) -> None:
    """Let each commit shrink the file, so that nothing deleted stays in it."""
    with suppress(sqlite3.Error):  # it stays as it is where nothing can be written
        connection.execute("PRAGMA auto_vacuum = FULL")


def _code(error: BaseException | None) -> int:
    """Return an error's number in SQLite, without the extended part; 0 for another error."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
