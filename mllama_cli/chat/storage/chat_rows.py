"""Chats as rows of the database: one of each, with its messages in rows of their own."""

import json
import sqlite3
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from mllama_cli.chat.storage.message_rows import (
    delete_messages,
    free_images,
    insert_messages,
    packed,
    read_conversation,
    unpacked,
)
from mllama_cli.chat.storage.names import unreadable
from mllama_cli.chat.storage.saved import ChatSummary, SavedChat
from mllama_cli.core.conversation import Conversation

_NEWEST_FIRST = "ORDER BY updated DESC, id DESC"


def update(connection: sqlite3.Connection, before: SavedChat, wanted: SavedChat) -> SavedChat:
    """Bring the rows from ``before`` to ``wanted``; a chat of its own where they are not as ``before`` says."""
    row = connection.execute("SELECT name, state FROM chats WHERE id = ?", (before.id,)).fetchone()
    ours = row is not None and row[1] == before.state
    wanted = replace(wanted, name=row[0] if ours else None)
    if wanted.name is None and not any(message.role == "user" for message in wanted.conversation):
        if ours:
            delete(connection, wanted.id)
            free_images(connection)
        return wanted
    if row is not None and not ours:
        wanted = replace(wanted, created=wanted.updated)
        wanted = replace(wanted, id=put(connection, wanted, None))
    else:
        put(connection, wanted, wanted.id)
    unchanged = _in_common(before.conversation, wanted.conversation) if ours else 0
    delete_messages(connection, wanted.id, unchanged)
    insert_messages(connection, wanted.id, wanted.conversation, unchanged)
    free_images(connection)
    return wanted


def put(connection: sqlite3.Connection, chat: SavedChat, number: int | None) -> int:
    """Write a chat's own row, new or not; without a number it gets the next one. A name stays as it is."""
    row = connection.execute(
        """INSERT INTO chats (id, title, model, created, updated, settings, state) VALUES (?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (id) DO UPDATE SET title = excluded.title, model = excluded.model, updated = excluded.updated,
            settings = excluded.settings, state = excluded.state""",
        (
            number,
            chat.title,
            packed(chat.model),
            chat.created.astimezone(UTC).isoformat(),
            chat.updated.astimezone(UTC).isoformat(),
            json.dumps(chat.settings),
            chat.state,
        ),
    )
    return number if number is not None else row.lastrowid or 0


def read(connection: sqlite3.Connection, number: int) -> SavedChat:
    """A chat that is there, whole. ChatStoreError where its rows make no sense."""
    name, model, created, updated, settings, state = connection.execute(
        "SELECT name, model, created, updated, settings, state FROM chats WHERE id = ?", (number,)
    ).fetchone()
    try:
        known = json.loads(settings)
    except (ValueError, TypeError) as error:
        raise unreadable(number, "its settings are no JSON") from error
    return SavedChat(
        id=number,
        name=name,
        model=unpacked(model),
        created=_time(created, number),
        updated=_time(updated, number),
        conversation=read_conversation(connection, number),
        settings=known,
        state=state,
    )


def summaries(connection: sqlite3.Connection) -> Iterator[ChatSummary]:
    """A line of each chat, newest first."""
    rows = connection.execute(
        f"""SELECT id, name, title, model, created, updated,
            (SELECT count(*) FROM messages WHERE chat = chats.id),
            (SELECT count(image) FROM messages JOIN parts ON message = messages.id WHERE chat = chats.id)
        FROM chats {_NEWEST_FIRST}"""
    ).fetchall()  # an open query would hold its lock beyond the transaction
    for number, name, title, model, created, updated, messages, images in rows:
        times = _time(created, number), _time(updated, number)
        yield ChatSummary(number, name, title, unpacked(model), *times, messages, images)


def newest(connection: sqlite3.Connection) -> int | None:
    row = connection.execute(f"SELECT id FROM chats {_NEWEST_FIRST} LIMIT 1").fetchone()
    return int(row[0]) if row else None


def has(connection: sqlite3.Connection, number: int) -> bool:
    return connection.execute("SELECT 1 FROM chats WHERE id = ?", (number,)).fetchone() is not None


def names(connection: sqlite3.Connection) -> dict[str, int]:
    """Which chat has which name."""
    return dict(connection.execute("SELECT name, id FROM chats WHERE name IS NOT NULL").fetchall())


def set_name(connection: sqlite3.Connection, number: int, name: str | None) -> bool:
    """Whether there is such a chat to give a name to."""
    return connection.execute("UPDATE chats SET name = ? WHERE id = ?", (name, number)).rowcount > 0


def delete(connection: sqlite3.Connection, number: int) -> bool:
    """Whether there was such a chat. Its pictures stay: see ``free_images``."""
    return connection.execute("DELETE FROM chats WHERE id = ?", (number,)).rowcount > 0


def containing(connection: sqlite3.Connection, query: str) -> set[int]:
    """Numbers of the chats with this text in name or messages. Here and not in SQL, whose LIKE folds ASCII only."""
    wanted = _folded(query.strip())
    rows = connection.execute(
        """SELECT id, name FROM chats WHERE name IS NOT NULL
        UNION ALL SELECT chat, coalesce(text, name) FROM messages JOIN parts ON message = messages.id"""
    )
    return {number for number, text in rows if wanted in _folded(unpacked(text))}


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _in_common(one: Conversation, other: Conversation) -> int:
    """How many messages from the start are equal."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (mine, yours) in pairs if mine != yours), min(len(one), len(other)))


def _time(text: str, number: int) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, TypeError) as error:
        raise unreadable(number, f"{text!r} is no time") from error
