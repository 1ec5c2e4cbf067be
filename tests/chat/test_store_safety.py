"""Saved chats through kills, other processes, threads and Ctrl-C: nothing that was saved is lost or mixed up."""

import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mllama_cli.chat.storage import rows
from mllama_cli.chat.storage.saved import SavedChat
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import ChatNotFoundError, ChatStoreError

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
    code = f"from tests.chat.test_store_safety import save_states; save_states({str(path)!r}, {seed}, {count})"
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


def test_ctrl_c_during_a_save_leaves_the_state_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ChatStore(path)
    chat = store.save(SavedChat.new("m"), HI)
    with monkeypatch.context() as patch:
        patch.setattr(rows, "insert_messages", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.save(chat, Conversation.ask("Bye"))
    assert ChatStore(path).load(chat.id).conversation == HI
    assert store.save(chat, Conversation.ask("Bye")).id == chat.id


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


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE messages SET role = 'robot'",
        "UPDATE messages SET name = x'ff'",
        "UPDATE parts SET text = x'ff'",
        "UPDATE chats SET model = x'ff'",
        "UPDATE chats SET name = x'ff'",
        "UPDATE chats SET settings = '{'",
        "UPDATE chats SET settings = '[]'",
        f"UPDATE chats SET settings = '{'[' * 100_000}'",
        "UPDATE chats SET updated = 'x'",
        "UPDATE chats SET updated = '0001-01-01T00:00:00+14:00'",
    ],
    ids=lambda change: change[:50],
)
def test_a_damaged_row_is_one_clear_error_and_can_be_deleted(path: Path, change: str) -> None:
    damaged, sound = keep(path), keep(path)
    with sqlite3.connect(path) as connection:
        ours = f"chat = {damaged.id}"
        only = {"messages": ours, "parts": f"message = (SELECT id FROM messages WHERE {ours})"}
        connection.execute(f"{change} WHERE {only.get(change.split()[1], f'id = {damaged.id}')}")
    store = ChatStore(path)
    with pytest.raises(ChatStoreError, match=f"Chat {damaged.id} ") as caught:
        store.load(damaged.id)
    assert f"mllama history rm {damaged.id}" in caught.value.hint
    assert store.load(sound.id).conversation == HI
    assert [chat.id for chat in store.chats()] == [sound.id, damaged.id]
    assert next(iter(store.chats("Hi"))).id == sound.id
    with pytest.raises(ChatNotFoundError):
        store.load("none")
    assert store.delete([store.summary(damaged.id).id]) == 1


def test_a_file_that_is_refused_is_an_error_of_the_store(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is not a database, but a text of some length" * 100)
    for use in (ChatStore(path).chats, lambda: keep(path)):
        with pytest.raises(ChatStoreError, match="damaged"):
            use()
    (path.parent / "file").touch()
    with pytest.raises(ChatStoreError) as caught:
        keep(path.parent / "file" / "chats.db")
    assert "MLLAMA_HOME" in caught.value.hint


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
