"""Saved chats: what was said comes back as it was."""

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mllama_cli.chat.storage.saved import SavedChat
from mllama_cli.chat.storage.schema import SCHEMA
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.core.conversation import Conversation, ImagePart, Message, TextPart
from mllama_cli.core.errors import ChatNotFoundError, ChatStoreError, UsageError
from mllama_cli.core.tool_calls import ToolCall
from mllama_cli.system.database import Database, Schema

PHOTO = ImagePart(b"\xff\xd8\xff" + bytes(range(256)) * 500, "~/Bilder/Kätzchen 1.jpg")
OTHER = ImagePart(b"\x89PNG\r\n\x1a\n other", "https://example.org/b.png")


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "chats" / "chats.db")


def keep(store: ChatStore, conversation: Conversation, model: str = "11b") -> SavedChat:
    return store.save(SavedChat.new(model), conversation)


def count(store: ChatStore, table: str) -> int:
    with sqlite3.connect(store.path) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


STRANGE = [
    Conversation.ask("What is this?", (PHOTO, OTHER), system="Be brief.").with_assistant("A cat.").with_user("Sure?"),
    Conversation.ask("日本語 🦙👩‍👩‍👧 e\u0301 \x00 \x1b[31m \u2028 \r\n\t'; DROP TABLE chats"),
    Conversation.ask("half \ud83d of a pair").with_assistant("\udcff"),
    Conversation.ask("?", (ImagePart(b"x", "caf\udce9.jpg"), ImagePart(b"", ""))),
    Conversation((Message("user", ()), Message("assistant", (TextPart(""),)))),
    Conversation((Message("user", (TextPart("a"), PHOTO, TextPart(""), PHOTO, TextPart("b"))),)),
    Conversation.ask("long " * 200_000),
    Conversation(
        (
            *Conversation.ask("Weather in Oslo and Bergen?"),
            Message("assistant", (TextPart("I ask."),), (ToolCall("sky", '{"city": "Å \\ud800"}', "call_1"),)),
            Message("tool", (TextPart("rain"),), name="sky", call_id="call_1"),
            Message("assistant", (), (ToolCall("sky", "not JSON"), ToolCall("\ud800", "{}", "3"))),
            Message("tool", (), name="\udcff"),
        )
    ),
]


@pytest.mark.parametrize("conversation", STRANGE)
def test_a_conversation_comes_back_as_it_was(store: ChatStore, conversation: Conversation) -> None:
    kept = keep(store, conversation)
    again = ChatStore(store.path).load(kept.id)
    assert again.conversation == conversation
    assert again == kept
    assert [summary.id for summary in store.chats()] == [kept.id]


def test_what_belongs_to_a_chat_comes_back_too(store: ChatStore) -> None:
    settings = {"system": "Be \ud800 kind.", "sampling": {"temperature": 0.5, "stop": ("a", "é"), "seed": None}}
    kept = store.save(SavedChat.new("mein-modell"), Conversation.ask("Hi"), settings=settings)
    again = ChatStore(store.path).load(str(kept.id))
    assert again.model == "mein-modell"
    assert again.settings == {
        "system": "Be \ud800 kind.",
        "sampling": {"temperature": 0.5, "stop": ["a", "é"], "seed": None},
    }
    assert again.created <= again.updated
    assert again.created.utcoffset() is not None
    changed = store.save(again, again.conversation, model="other", settings={})
    assert (store.load(kept.id).model, store.load(kept.id).settings) == ("other", {})
    assert store.save(changed, changed.conversation).settings == {}


def test_every_step_of_a_chat_is_kept(store: ChatStore) -> None:
    one = Conversation.ask("What is this?", (PHOTO,))
    two = one.with_assistant("A cat.")
    steps = [
        one,
        two,
        two.with_user("And that?", (OTHER,)),
        two.with_user("And that?", (OTHER,)).with_assistant("A dog."),
        two.with_user("And that?", (OTHER,)).with_assistant("A wolf."),  # regenerated
        two,  # taken back
        Conversation((replace(two.messages[0], parts=(PHOTO, TextPart("Who is this?"))), *two.messages[1:])),  # edited
        Conversation(two.messages[1:]),
        two,
    ]
    chat = SavedChat.new("m")
    for step in steps:
        chat = store.save(chat, step)
        if any(message.role == "user" for message in step):
            assert ChatStore(store.path).load(chat.id).conversation == step
    assert len(store.chats()) == 1


def test_only_what_changed_is_written(store: ChatStore) -> None:
    talk = Conversation.ask("What is this?", (PHOTO,)).with_assistant("A cat.")
    chat = keep(store, talk)
    with sqlite3.connect(store.path) as connection:
        before = connection.execute("SELECT id FROM messages ORDER BY position").fetchall()
    chat = store.save(chat, talk.with_user("Sure?"))
    with sqlite3.connect(store.path) as connection:
        after = connection.execute("SELECT id FROM messages ORDER BY position").fetchall()
    assert after[:2] == before
    assert len(after) == 3
    changes = store.path.read_bytes()
    assert store.save(chat, chat.conversation) is chat
    assert store.path.read_bytes() == changes


def test_empty_conversations_are_not_kept(store: ChatStore) -> None:
    chat = SavedChat.new("m")
    assert store.save(chat, Conversation((Message("system", (TextPart("Be kind."),)),))).id == chat.id
    assert (store.chats(), store.last()) == ([], None)
    chat = store.save(chat, Conversation.ask("Hi", (PHOTO,)))
    assert store.chats()[0].id == chat.id
    chat = store.save(chat, Conversation())
    assert (store.chats(), count(store, "messages"), count(store, "images")) == ([], 0, 0)
    again = store.save(chat, Conversation.ask("Hello"))
    assert (again.id, store.load(chat.id).conversation) == (chat.id, Conversation.ask("Hello"))


def test_a_named_chat_stays_when_all_is_taken_back(store: ChatStore) -> None:
    chat = store.rename(keep(store, Conversation.ask("Hi")), "mine")
    chat = store.save(chat, Conversation())
    assert store.load("mine").conversation == Conversation()
    assert store.save(chat, Conversation.ask("Hello")).name == "mine"


def test_a_picture_is_stored_once_and_goes_with_the_last_chat_that_shows_it(store: ChatStore) -> None:
    renamed = replace(PHOTO, name="again.jpg")
    first = keep(store, Conversation.ask("Two of it", (PHOTO, renamed)).with_assistant("Yes.").with_user("?", (PHOTO,)))
    second = keep(store, Conversation.ask("And here", (PHOTO, OTHER)))
    assert count(store, "images") == 2
    assert [image.name for image in store.load(first.id).conversation.images] == [PHOTO.name, "again.jpg", PHOTO.name]
    store.delete([first.id])
    assert count(store, "images") == 2
    assert store.load(second.id).conversation.images == (PHOTO, OTHER)
    second = store.save(second, Conversation.ask("And here", (OTHER,)))
    assert count(store, "images") == 1
    store.delete([second.id])
    assert (count(store, "images"), count(store, "messages"), count(store, "parts")) == (0, 0, 0)


def test_deleting_frees_the_disk_and_leaves_nothing_to_read(store: ChatStore) -> None:
    keep(store, Conversation.ask("stays"))
    small = store.path.stat().st_size
    big = ImagePart(b"SECRET-PIXELS" * 400_000, "big.jpg")
    chat = keep(store, Conversation.ask("a SECRET-QUESTION of mine", (big,)))
    assert store.path.stat().st_size > len(big.data)
    store.delete([chat.id])
    assert store.path.stat().st_size <= small + 20_000
    assert b"SECRET" not in store.path.read_bytes()


def test_lists_are_newest_first_with_counts_and_titles(store: ChatStore) -> None:
    first = keep(store, Conversation.ask("First  question\nof all", (PHOTO, OTHER)).with_assistant("Yes."))
    second = keep(store, Conversation.ask("w" * 30 + " and then many more words that no title can hold"))
    third = keep(store, Conversation.ask("", (PHOTO,)))
    assert [chat.id for chat in store.chats()] == [third.id, second.id, first.id]
    store.save(first, first.conversation.with_user("More"))
    newest = store.chats()[0]
    assert (newest.id, newest.title, newest.messages, newest.images) == (first.id, "First question of all", 3, 2)
    titles = {chat.id: chat.title for chat in store.chats()}
    assert titles[second.id] == "w" * 30 + " and then many more words…"
    assert titles[third.id] == "Kätzchen 1.jpg"
    last = store.last()
    assert last is not None
    assert last.id == first.id
    assert [chat.id for chat in store.chats(limit=2)] == [first.id, third.id]
    assert store.chats(limit=0) == []


def test_a_wrong_clock_does_not_make_a_chat_the_last_for_ever(
    store: ChatStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mllama_cli.chat.storage.store.now", lambda: datetime(2099, 1, 1, tzinfo=UTC))
        future = keep(store, Conversation.ask("Saved while the clock was wrong"))
    second = keep(store, Conversation.ask("Saved later"))
    assert [chat.id for chat in store.chats()] == [second.id, future.id]
    last = store.last()
    assert last is not None
    assert last.id == second.id
    store.save(future, future.conversation.with_assistant("Right."))
    assert store.chats()[0].id == future.id


def test_chats_of_the_first_version_keep_their_order(store: ChatStore) -> None:
    old = Schema(SCHEMA.migrations[:1], SCHEMA.error, SCHEMA.moved_by)
    with Database(store.path, old).writing() as connection:
        for number, day in ((1, 3), (2, 1), (3, 2), (4, 2)):
            connection.execute(
                "INSERT INTO chats VALUES (?, NULL, 'Hi', '11b', ?, ?, '{}', 'x')",
                (number, *(f"2026-01-0{day}T00:00:00+00:00",) * 2),
            )
            connection.execute("INSERT INTO messages VALUES (?, ?, 0, 'user')", (number, number))
            connection.execute("INSERT INTO parts VALUES (?, 0, 'Hi', NULL, NULL)", (number,))
    assert [chat.id for chat in store.chats()] == [1, 4, 3, 2]
    assert store.load(2).conversation == Conversation.ask("Hi")
    assert keep(store, Conversation.ask("New")).id == store.chats()[0].id == 5


def test_damaged_tool_calls_are_one_clear_error(store: ChatStore) -> None:
    kept = keep(store, STRANGE[-1])
    for damage in ("[", "[1]", "{}", "[" * 100_000):
        with sqlite3.connect(store.path) as connection:
            connection.execute("UPDATE messages SET tool_calls = ? WHERE position = 1", (damage,))
        with pytest.raises(ChatStoreError, match="tool calls"):
            ChatStore(store.path).load(kept.id)


def test_titles_cannot_steer_the_terminal(store: ChatStore) -> None:
    keep(store, Conversation.ask("\x1b]0;owned\x07 red\x9b31m \ud800text"))
    assert store.chats()[0].title == "]0;owned red31m \ufffdtext"


def test_search_looks_into_names_and_everything_said(store: ChatStore) -> None:
    street = keep(store, Conversation.ask("Where is that?").with_assistant("In the Große Straße, 100% sure_ly."))
    cat = keep(store, Conversation.ask("What is this?", (PHOTO,)))
    store.rename(keep(store, Conversation.ask("Nothing")), "Holiday 2024")

    def found(query: str) -> list[int]:
        return [chat.id for chat in store.chats(query)]

    assert found("STRASSE") == [street.id]
    assert found("ka\u0308tzchen") == [cat.id]
    assert found("holiday") == [cat.id + 1]
    assert found("100%") == found("sure_") == [street.id]
    assert found("0%s") == found("nowhere") == []
    assert len(found("  ")) == 3
    assert len(store.chats("is", limit=1)) == 1


def test_names(store: ChatStore) -> None:
    trip = store.rename(keep(store, Conversation.ask("a")), "  Trip to\nRome ")
    store.rename(keep(store, Conversation.ask("b")), "trip-2")
    cafe = store.rename(keep(store, Conversation.ask("c")), "cafe\u0301")
    assert trip.name == "Trip to Rome"
    assert store.load("Trip to Rome") == trip
    assert store.load("trip to rome").id == store.load("trip t").id == trip.id
    assert store.load("Café").id == cafe.id
    assert store.load(f" {cafe.id} ").id == cafe.id
    with pytest.raises(UsageError, match=r"several.*'Trip to Rome', 'trip-2'|several.*'trip-2', 'Trip to Rome'"):
        store.load("tri")
    with pytest.raises(ChatNotFoundError) as caught:
        store.load("tripp-2")
    assert "Did you mean 'trip-2'?" in caught.value.hint
    with pytest.raises(ChatNotFoundError, match="77"):
        store.load(77)
    for odd in ("", "  ", "9" * 40, "x" * 100_000, "\ud800", "%", "-"):
        with pytest.raises((ChatNotFoundError, UsageError)):
            store.load(odd)


def test_the_exact_name_is_wanted_where_much_depends_on_it(store: ChatStore) -> None:
    chat = store.rename(keep(store, Conversation.ask("a")), "trip-2024")
    with pytest.raises(ChatNotFoundError) as caught:
        store.summary("trip", exact=True)
    assert "'trip-2024'" in caught.value.hint
    assert store.summary("Trip-2024", exact=True).id == store.summary("trip").id == chat.id


@pytest.mark.parametrize("name", ["", "  \n", "12", "٣", "9" * 30, "--all", "a\x1b[31m", "a\ud800", "x" * 81])
def test_names_that_could_not_be_typed_are_refused(store: ChatStore, name: str) -> None:
    chat = keep(store, Conversation.ask("a"))
    with pytest.raises(UsageError) as caught:
        store.rename(chat, name)
    assert caught.value.hint
    assert store.load(chat.id).name is None


def test_a_taken_name_is_an_error_unless_it_may_be_taken(store: ChatStore) -> None:
    first = store.rename(keep(store, Conversation.ask("a")), "Mine")
    second = keep(store, Conversation.ask("b"))
    with pytest.raises(UsageError, match="'Mine'"):
        store.rename(second, "mine")
    assert store.rename(first, "MINE").name == "MINE"
    store.rename(second, "mine", overwrite=True)
    assert store.load("mine").id == second.id
    assert store.load(first.id).name is None
    assert store.load(first.id).conversation == Conversation.ask("a")


def test_a_chat_without_a_question_cannot_be_named(store: ChatStore) -> None:
    with pytest.raises(UsageError, match="not saved yet"):
        store.rename(SavedChat.new("m"), "mine")


def test_the_name_outlives_further_saves(store: ChatStore) -> None:
    chat = keep(store, Conversation.ask("a"))
    store.rename(chat, "mine")
    assert store.save(chat, chat.conversation.with_assistant("b")).name == "mine"
    assert store.load("mine").conversation == chat.conversation.with_assistant("b")


def test_reading_creates_nothing(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "none" / "chats.db")
    assert (store.chats(), store.chats("x"), store.last(), store.delete([1])) == ([], [], None, 0)
    with pytest.raises(ChatNotFoundError, match="nothing was saved yet"):
        store.load("x")
    assert not (tmp_path / "none").exists()


def test_the_place_is_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path))
    keep(ChatStore(), Conversation.ask("a"))
    assert (tmp_path / "chats" / "chats.db").is_file()
