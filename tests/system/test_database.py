"""A small SQLite file of the user's own: other processes, full and read-only disks, damage, versions."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mllama_cli.core.errors import MllamaError
from mllama_cli.system import database
from mllama_cli.system.database import Database, Schema
from tests.conftest import ROOT


class NotesError(MllamaError):
    """The error of the schema below."""


SCHEMA = Schema((("CREATE TABLE notes (text TEXT NOT NULL)",),), NotesError, moved_by="NOTES_HOME")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notes" / "notes.db"


def write(path: Path, text: str = "Hi", schema: Schema = SCHEMA) -> None:
    notes = Database(path, schema)
    try:
        with notes.writing() as connection:
            connection.execute("INSERT INTO notes (text) VALUES (?)", (text,))
    finally:
        notes.close()


def read(path: Path, schema: Schema = SCHEMA) -> list[str]:
    notes = Database(path, schema)
    try:
        with notes.reading() as connection:
            return [text for (text,) in connection.execute("SELECT text FROM notes")]
    finally:
        notes.close()


def refusal(path: Path, schema: Schema = SCHEMA) -> NotesError:
    """Return the error of a write. It must not change the file."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(NotesError) as caught:
        write(path, schema=schema)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert (path.read_bytes() if path.is_file() else None) == before
    return caught.value


@pytest.mark.skipif(os.name == "nt", reason="permissions as POSIX has them")
def test_only_the_user_may_look_into_the_file(path: Path) -> None:
    old = os.umask(0)
    try:
        write(path)
        with Database(path, SCHEMA).writing() as connection:
            connection.execute("UPDATE notes SET text = 'x'")
            journal = path.with_name("notes.db-journal").stat().st_mode & 0o777
    finally:
        os.umask(old)
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777, journal) == (0o700, 0o600, 0o600)
    path.chmod(0o644)
    read(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_folder_of_a_file_named_by_its_path_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    write(tmp_path / "my.db")
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"this is no database, but a text of some length" * 100, "not a database"),
        (b"SQLite format 3\0" + b"\xff" * 5000, "not a database|malformed"),
    ],
)
def test_a_damaged_file_is_one_clear_error_and_is_left_alone(path: Path, content: bytes, message: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    error = refusal(path)
    assert str(path) in error.message
    assert "damaged" in error.message
    assert f"mv '{path}'" in error.hint
    with pytest.raises(NotesError, match=message):
        read(path)
    assert path.read_bytes() == content


def test_a_file_cut_short_is_one_clear_error(path: Path) -> None:
    write(path, "words " * 50_000)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(NotesError, match="damaged"):
        read(path)


def test_a_newer_schema_is_left_alone(path: Path) -> None:
    write(path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(SCHEMA.migrations) + 1}")
    error = refusal(path)
    assert "newer mllama" in error.message
    assert "Update mllama" in error.hint


def test_an_older_schema_is_migrated_with_all_that_it_holds(path: Path) -> None:
    write(path)
    migrations = (*SCHEMA.migrations, ("ALTER TABLE notes ADD COLUMN mood TEXT", "UPDATE notes SET mood = 'good'"))
    assert read(path, replace(SCHEMA, migrations=migrations)) == ["Hi"]
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT mood FROM notes").fetchall() == [("good",)]
        assert connection.execute("PRAGMA user_version").fetchone() == (len(migrations),)


def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    write(path)
    migrations = (*SCHEMA.migrations, ("ALTER TABLE notes ADD COLUMN mood TEXT", "UPDATE no_such_table SET x = 1"))
    refusal(path, replace(SCHEMA, migrations=migrations))
    assert read(path) == ["Hi"]


def test_another_process_may_make_the_tables_while_we_look(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *given: Any) -> sqlite3.Cursor:
            if "sqlite_master" in sql:  # the last that is looked at
                with monkeypatch.context() as other:  # cannot wait for us: we are one thread
                    other.setattr(database.sqlite3, "connect", connect)
                    other.setattr(database, "BUSY_SECONDS", 0)
                    with suppress(NotesError):
                        write(path, "Other")
            return super().execute(sql, *given)

    def watched(*given: Any, **more: Any) -> sqlite3.Connection:
        return connect(*given, **more, factory=Watched)

    with monkeypatch.context() as patch:
        patch.setattr(database.sqlite3, "connect", watched)
        write(path)
    assert read(path)[-1] == "Hi"


def test_another_programs_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    assert "another program" in refusal(path).message


def test_an_empty_file_is_a_beginning(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert read(path) == []
    write(path)
    assert read(path) == ["Hi"]


def test_a_lock_that_stays_is_a_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert "locked" in refusal(path).message
    holder.close()
    write(path)
    assert read(path) == ["Hi", "Hi"]


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    """A folder that a plain user may look into and not change, with this process being that user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / "notes.db"
        write(path)
        path.chmod(0o444)
        root = os.name != "nt" and os.geteuid() == 0
        if root:
            os.seteuid(65534)
        else:
            folder.chmod(0o555)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="permissions as POSIX has them")
def test_where_nothing_may_be_written_reading_continues(foreign: Path) -> None:
    assert read(foreign / "notes.db") == ["Hi"]
    error = refusal(foreign / "notes.db")
    assert "cannot be written" in error.message
    assert "NOTES_HOME" in error.hint
    assert "Permission denied" in refusal(foreign / "new" / "notes.db").message


def test_a_link_is_followed_to_a_database_of_ours_only(path: Path, tmp_path: Path) -> None:
    write(path)
    link = tmp_path / "link.db"
    link.symlink_to(path)
    write(link, "through the link")
    assert read(path) == ["Hi", "through the link"]
    for content in (b"", b"mine"):
        mine = tmp_path / "mine.txt"
        mine.write_bytes(content)
        mine.chmod(0o644)
        link.unlink()
        link.symlink_to(mine)
        refusal(link)
        with pytest.raises(NotesError):
            read(link)
        assert mine.read_bytes() == content
        assert mine.stat().st_mode & 0o777 == 0o644
    mine.unlink()
    assert "link to nothing" in refusal(link).message
    assert not mine.exists()
    link.unlink()
    link.symlink_to(link)
    refusal(link)


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
def test_a_planted_journal_is_refused(path: Path, tmp_path: Path, suffix: str) -> None:
    write(path)
    (tmp_path / "victim").write_bytes(b"mine")
    journal = Path(f"{path}{suffix}")
    journal.symlink_to(tmp_path / "victim")
    assert f"notes.db{suffix} is a link" in refusal(path).message
    assert (tmp_path / "victim").read_bytes() == b"mine"
    journal.unlink()
    assert read(path) == ["Hi"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give files away")
def test_another_users_file_is_read_but_gets_nothing(path: Path) -> None:
    write(path)
    os.chown(path, 65534, -1)
    path.chmod(0o644)
    assert read(path) == ["Hi"]
    assert "belongs to another user" in refusal(path).message
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (65534, 0o644)
    os.chown(path, 0, -1)
    journal = path.with_name("notes.db-journal")
    journal.touch()
    os.chown(journal, 65534, -1)
    assert "belongs to another user" in refusal(path).message
    path.unlink()
    journal.unlink()
    path.touch()
    os.chown(path, 65534, -1)
    assert "belongs to another user" in refusal(path).message


@pytest.mark.skipif(os.name == "nt", reason="pipes as POSIX has them")
def test_a_pipe_in_the_way_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "notes.db")
    with pytest.raises(NotesError, match="not a regular file"):
        write(tmp_path / "notes.db")


FULL = """
import os, sqlite3, sys
from pathlib import Path
from mllama_cli.core.errors import MllamaError
from tests.system.test_database import SCHEMA, Database, read
folder, free = Path(sys.argv[1]), int(sys.argv[2])
notes = Database(folder / "notes.db", SCHEMA)
with notes.writing() as connection:
    for letter in "abcdefgh":
        connection.execute("INSERT INTO notes (text) VALUES (?)", (letter * 100_000,))
room = os.statvfs(folder)
(folder / "other").write_bytes(b"1" * (room.f_bavail * room.f_frsize - free))
before = notes.path.stat().st_size
try:
    count = notes.delete(lambda connection: connection.execute("DELETE FROM notes WHERE text < 'd'").rowcount)
    assert count == 3 and before - notes.path.stat().st_size >= 290_000
except MllamaError as error:
    print(error.message)
    count = 0
assert len(read(notes.path)) == 8 - count
with sqlite3.connect(notes.path) as connection:
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("PRAGMA auto_vacuum").fetchone() == (1,)
print(count)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a small disk as Linux does")
@pytest.mark.parametrize(("free", "deleted"), [(100_000, "3\n"), (0, "full\n0\n")])
def test_deleting_frees_a_full_disk(tmp_path: Path, free: int, deleted: str) -> None:
    mounted = ["unshare", "--mount", "--map-root-user", "sh", "-c", 'mount -t tmpfs -o size=2m none "$0" && "$@"']
    try:
        subprocess.run([*mounted, str(tmp_path), "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a disk")
    command = [*mounted, str(tmp_path), sys.executable, "-c", FULL, str(tmp_path), str(free)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.endswith(deleted), done.stderr


def test_a_file_or_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refusal(tmp_path / "file" / "notes.db")
    refusal(tmp_path / "file" / "notes" / "notes.db")
    (tmp_path / "folder").mkdir(mode=0o755)
    refusal(tmp_path / "folder")
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755
