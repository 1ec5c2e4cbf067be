"""What may happen to the file of saved chats: kills, other processes, full and read-only disks, damage, versions."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mllama_cli.chat.storage import rows
from mllama_cli.chat.storage import store as chat_store
from mllama_cli.chat.storage.schema import SCHEMA
from mllama_cli.chat.storage.store import ChatStore, SavedChat
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import ChatStoreError
from mllama_cli.system import database

ROOT = Path(__file__).parents[2]
HI = Conversation.ask("Hi")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chats" / "chats.db"


def keep(path: Path, conversation: Conversation = HI) -> SavedChat:
    store = ChatStore(path)
    saved = store.save(SavedChat.new("m"), conversation)
    store.close()
    return saved


def refusal(path: Path) -> ChatStoreError:
    """Of a save. It must not change the file."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ChatStoreError) as caught:
        keep(path)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert (path.read_bytes() if path.is_file() else None) == before
    return caught.value


def states(seed: int, count: int) -> Iterator[Conversation]:
    """A chat as it goes: questions with and without pictures, answers, other answers, questions taken back."""
    chance = random.Random(seed)
    talk = Conversation()
    for number in range(count):
        if not talk.messages or talk.messages[-1].role == "assistant":
            if len(talk) > 6 and chance.random() < 0.4:
                talk = Conversation(talk.messages[: -2 * chance.randrange(1, 3)])
            pictures = [ImagePart(chance.randbytes(200_000), f"{i}.jpg") for i in range(chance.randrange(4))]
            talk = talk.with_user(f"question {number}", tuple(pictures))
        else:
            talk = talk.with_assistant(f"answer {number}")
        yield talk


def save_states(path: str, seed: int, count: int) -> None:
    """In another process: save states, and print the number of the chat, then of each state once it is saved."""
    store = ChatStore(Path(path))
    chat = SavedChat.new("m")
    for number, talk in enumerate(states(seed, count)):
        chat = store.save(chat, talk)
        if number == 0:
            _say(chat.id)
        _say(number)


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def saver(path: Path, seed: int, count: int) -> subprocess.Popen[str]:
    code = f"from tests.chat.test_database import save_states; save_states({str(path)!r}, {seed}, {count})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_killed_process_loses_nothing_that_was_kept(path: Path) -> None:
    chance = random.Random(0)
    for seed in range(12):
        with saver(path, seed, 100_000) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(chance.randrange(2, 12))]
            time.sleep(chance.random() * 0.03)
            process.send_signal(signal.SIGKILL)
            said += process.stdout.readlines()
            assert process.wait() == -signal.SIGKILL
        chat, done = int(said[0]), int(said[-1])
        kept = ChatStore(path).load(chat).conversation
        *_, before, after = states(seed, done + 2)
        assert kept in (before, after)
    assert len(ChatStore(path).chats()) == 12
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        shown = connection.execute("SELECT count(DISTINCT image) FROM parts").fetchone()
        assert connection.execute("SELECT count(*) FROM images").fetchone() == shown


def test_several_processes_save_at_once_from_the_first_moment_on(path: Path) -> None:
    processes = [saver(path, seed, 25) for seed in range(3)]
    chats = [int(process.communicate(timeout=120)[0].split()[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(chats) == [1, 2, 3]
    for seed, chat in enumerate(chats):
        *_, last = states(seed, 25)
        assert ChatStore(path).load(chat).conversation == last


def test_a_chat_that_two_processes_go_on_with_becomes_two(path: Path) -> None:
    start = keep(path, HI.with_assistant("Hello."))
    mine, yours = ChatStore(path), ChatStore(path)
    one, other = mine.load(start.id), yours.load(start.id)
    one = mine.save(one, one.conversation.with_user("Mine?"))
    other = yours.save(other, other.conversation.with_user("Yours?"))
    other = yours.save(other, other.conversation.with_assistant("Yes."))
    one = mine.save(one, one.conversation.with_assistant("No."))
    assert one.id == start.id != other.id
    assert mine.load(one.id).conversation == HI.with_assistant("Hello.").with_user("Mine?").with_assistant("No.")
    assert mine.load(other.id).conversation == HI.with_assistant("Hello.").with_user("Yours?").with_assistant("Yes.")


def test_a_chat_that_another_process_went_on_with_is_not_emptied(path: Path) -> None:
    start = keep(path)
    mine, yours = ChatStore(path), ChatStore(path)
    yours.save(yours.load(start.id), HI.with_assistant("Hello."))
    mine.save(start, Conversation())
    assert mine.load(start.id).conversation == HI.with_assistant("Hello.")


def test_a_chat_that_was_deleted_elsewhere_is_kept_again(path: Path) -> None:
    picture = ImagePart(b"picture")
    start = keep(path, Conversation.ask("What?", (picture,)))
    ChatStore(path).delete([start.id])
    newer = keep(path)
    store = ChatStore(path)
    again = store.save(start, start.conversation.with_assistant("This."))
    assert newer.id != start.id == again.id
    assert store.load(start.id).conversation == start.conversation.with_assistant("This.")


def test_threads_may_share_a_store(path: Path) -> None:
    store = ChatStore(path)
    wrong: list[BaseException] = []

    def work(number: int) -> None:
        try:
            chat = SavedChat.new("m")
            for step in range(10):
                chat = store.save(chat, Conversation.ask(f"{number} {step}"))
                store.chats()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sorted(chat.title for chat in store.chats()) == [f"{number} 9" for number in range(4)]


def test_ctrl_c_in_the_midst_of_a_save_leaves_the_state_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ChatStore(path)
    chat = store.save(SavedChat.new("m"), HI)
    with monkeypatch.context() as patch:
        patch.setattr(rows, "insert_messages", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.save(chat, Conversation.ask("Bye"))
    assert ChatStore(path).load(chat.id).conversation == HI
    assert store.save(chat, Conversation.ask("Bye")).id == chat.id


@pytest.mark.skipif(os.name == "nt", reason="permissions as POSIX has them")
def test_only_the_user_may_look_into_saved_chats(path: Path) -> None:
    old = os.umask(0)
    try:
        keep(path)
        store = ChatStore(path)
        with store._database.writing() as connection:
            connection.execute("UPDATE chats SET title = 'x'")
            journal = path.with_name("chats.db-journal").stat().st_mode & 0o777
    finally:
        os.umask(old)
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777, journal) == (0o700, 0o600, 0o600)
    path.chmod(0o644)
    ChatStore(path).chats()
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_folder_of_a_file_named_by_its_path_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    keep(tmp_path / "my.db")
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
    with pytest.raises(ChatStoreError, match=message):
        ChatStore(path).chats()
    assert path.read_bytes() == content


def test_damage_inside_is_one_clear_error_and_never_another_picture(path: Path) -> None:
    picture = ImagePart(b"PIXELS" * 50_000)
    chat = keep(path, Conversation.ask("What?", (picture,)))
    sound = keep(path)
    data = path.read_bytes()
    place = data.rindex(b"PIXELS" * 10)
    path.write_bytes(data[:place] + b"pixels" + data[place + 6 :])
    store = ChatStore(path)
    with pytest.raises(ChatStoreError, match=f"Chat {chat.id} .*image"):
        store.load(chat.id)
    assert store.load(sound.id).conversation == HI
    for change in (
        "UPDATE messages SET role = 'robot'",
        "UPDATE chats SET settings = '{'",
        "UPDATE chats SET updated = 'x'",
    ):
        with sqlite3.connect(path) as connection:
            connection.execute(change)
        with pytest.raises(ChatStoreError, match=f"Chat {sound.id} ") as caught:
            store.load(sound.id)
        assert f"mllama history rm {sound.id}" in caught.value.hint


def test_a_file_cut_short_is_one_clear_error(path: Path) -> None:
    keep(path, Conversation.ask("What?", (ImagePart(b"PIXELS" * 50_000),)))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ChatStoreError, match="damaged"):
        ChatStore(path).load(1)


def test_a_newer_schema_is_left_alone(path: Path) -> None:
    keep(path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(SCHEMA.migrations) + 1}")
    error = refusal(path)
    assert "newer mllama" in error.message
    assert "Update mllama" in error.hint


def test_an_older_schema_is_brought_up_with_all_that_it_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = keep(path, Conversation.ask("What?", (ImagePart(b"picture"),)))
    later = (*SCHEMA.migrations, ("ALTER TABLE chats ADD COLUMN mood TEXT", "UPDATE chats SET mood = 'good'"))
    monkeypatch.setattr(chat_store, "SCHEMA", replace(SCHEMA, migrations=later))
    assert ChatStore(path).load(chat.id) == chat
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT mood FROM chats").fetchall() == [("good",)]
        assert connection.execute("PRAGMA user_version").fetchone() == (len(later),)


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(path)
    later = (*SCHEMA.migrations, ("ALTER TABLE chats ADD COLUMN mood TEXT", "UPDATE no_such_table SET x = 1"))
    with monkeypatch.context() as patch:
        patch.setattr(chat_store, "SCHEMA", replace(SCHEMA, migrations=later))
        refusal(path)
    assert ChatStore(path).load(1).conversation == HI


def test_another_process_may_make_the_tables_while_we_look(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *given: Any) -> sqlite3.Cursor:
            if "sqlite_master" in sql:  # the last that is looked at
                with monkeypatch.context() as other:  # cannot wait for us: we are one thread
                    other.setattr(database.sqlite3, "connect", connect)
                    other.setattr(database, "BUSY_SECONDS", 0)
                    with suppress(ChatStoreError):
                        keep(path)
            return super().execute(sql, *given)

    def watched(*given: Any, **more: Any) -> sqlite3.Connection:
        return connect(*given, **more, factory=Watched)

    with monkeypatch.context() as patch:
        patch.setattr(database.sqlite3, "connect", watched)
        keep(path)
    assert ChatStore(path).load(1).conversation == HI


def test_another_programs_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    assert "another program" in refusal(path).message


def test_an_empty_file_is_a_beginning(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert ChatStore(path).chats() == []
    assert ChatStore(path).load(keep(path).id).conversation == HI


def test_a_full_disk_is_a_clear_error_and_what_was_kept_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def small(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 40")
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    store = ChatStore(path)
    chat = store.save(SavedChat.new("m"), HI)
    more = HI.with_assistant("Yes?").with_user("What?", (ImagePart(b"PIXELS" * 50_000),))
    with pytest.raises(ChatStoreError, match="disk is full"):
        store.save(chat, more)
    assert store.load(chat.id).conversation == HI
    smaller = HI.with_assistant("Yes?")
    assert store.save(chat, smaller).conversation == store.load(chat.id).conversation == smaller


def test_a_lock_that_stays_is_a_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(path)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert "locked" in refusal(path).message
    holder.close()
    assert keep(path).id == 2


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    """A folder that a plain user may look into and not change, with this process being that user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / "chats.db"
        keep(path)
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
def test_where_nothing_may_be_written_reading_goes_on(foreign: Path) -> None:
    store = ChatStore(foreign / "chats.db")
    assert store.load(1).conversation == HI
    assert [chat.title for chat in store.chats()] == ["Hi"]
    error = refusal(foreign / "chats.db")
    assert "cannot be written" in error.message
    assert "MLLAMA_HOME" in error.hint
    assert "Permission denied" in refusal(foreign / "new" / "chats.db").message


def test_a_file_or_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refusal(tmp_path / "file" / "chats.db")
    refusal(tmp_path / "file" / "chats" / "chats.db")
    (tmp_path / "folder").mkdir(mode=0o755)
    refusal(tmp_path / "folder")
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755
