"""Read and write saved chats as database rows: chats, messages, their parts, and images by digest."""

import json
import sqlite3
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, get_args

from mllama_cli.chat.storage.names import unreadable
from mllama_cli.chat.storage.saved import ChatSummary, SavedChat
from mllama_cli.core.conversation import Conversation, ImagePart, Message, Part, Role, TextPart
from mllama_cli.core.text import shown
from mllama_cli.core.tool_calls import ToolCall, read_calls

_NEWEST_FIRST = "ORDER BY sequence DESC, id DESC"
_UNKNOWN_TIME = datetime.fromtimestamp(0, UTC)


def update(connection: sqlite3.Connection, before: SavedChat, wanted: SavedChat) -> SavedChat:
    """Bring the rows from ``before`` to ``wanted``; write another chat if they are not as ``before`` says."""
    row = connection.execute("SELECT name, state FROM chats WHERE id = ?", (before.id,)).fetchone()
    ours = row is not None and row[1] == before.state
    wanted = replace(wanted, name=row[0] if ours else None)
    if wanted.name is None and not any(message.role == "user" for message in wanted.conversation):
        if ours:
            delete(connection, wanted.id)
            delete_unused_images(connection)
        return wanted
    if row is not None and not ours:
        wanted = replace(wanted, id=0, created=wanted.updated)
    wanted = replace(wanted, id=_put(connection, wanted))
    unchanged = _common_prefix(before.conversation, wanted.conversation) if ours else 0
    connection.execute("DELETE FROM messages WHERE chat = ? AND position >= ?", (wanted.id, unchanged))
    insert_messages(connection, wanted.id, wanted.conversation, unchanged)
    delete_unused_images(connection)
    return wanted


def read(connection: sqlite3.Connection, number: int) -> SavedChat:
    """Return an existing chat. Raise ChatStoreError if its rows are damaged."""
    name, model, created, updated, settings, state = connection.execute(
        "SELECT name, model, created, updated, settings, state FROM chats WHERE id = ?", (number,)
    ).fetchone()
    with _readable(number):
        return SavedChat(
            id=number,
            name=None if name is None else _text(name),
            model=_text(model),
            created=_time(created),
            updated=_time(updated),
            conversation=_read_conversation(connection, number),
            settings=_settings(settings),
            state=_text(state),
        )


def summaries(connection: sqlite3.Connection) -> Iterator[ChatSummary]:
    """Yield a summary of each chat, newest first. That of a damaged row says so in its title, and can be deleted."""
    rows = connection.execute(
        f"""SELECT id, name, title, model, created, updated,
            (SELECT count(*) FROM messages WHERE chat = chats.id),
            (SELECT count(image) FROM messages JOIN parts ON message = messages.id WHERE chat = chats.id)
        FROM chats {_NEWEST_FIRST}"""
    ).fetchall()  # an open cursor would hold its lock beyond the transaction
    for number, name, title, model, created, updated, messages, images in rows:
        try:
            words = None if name is None else _text(name), _text(title), _text(model)
            times = _time(created), _time(updated)
        except ValueError as error:
            words, times = (None, f"[damaged: {error}]", ""), (_UNKNOWN_TIME, _UNKNOWN_TIME)
        yield ChatSummary(number, *words, *times, messages, images)


def newest(connection: sqlite3.Connection) -> int | None:
    row = connection.execute(f"SELECT id FROM chats {_NEWEST_FIRST} LIMIT 1").fetchone()
    return int(row[0]) if row else None


def exists(connection: sqlite3.Connection, number: int) -> bool:
    return connection.execute("SELECT 1 FROM chats WHERE id = ?", (number,)).fetchone() is not None


def names(connection: sqlite3.Connection) -> dict[str, int]:
    """Return chat numbers by name."""
    rows = connection.execute("SELECT name, id FROM chats WHERE name IS NOT NULL").fetchall()
    return {name: number for name, number in rows if isinstance(name, str)}


def set_name(connection: sqlite3.Connection, number: int, name: str | None) -> bool:
    """Name a chat. Return whether it exists."""
    return connection.execute("UPDATE chats SET name = ? WHERE id = ?", (name, number)).rowcount > 0


def delete(connection: sqlite3.Connection, number: int) -> bool:
    """Delete a chat but not its images (see ``delete_unused_images``). Return whether it existed."""
    return connection.execute("DELETE FROM chats WHERE id = ?", (number,)).rowcount > 0


def delete_unused_images(connection: sqlite3.Connection) -> None:
    """Delete the images that no message shows."""
    connection.execute("DELETE FROM images WHERE digest NOT IN (SELECT image FROM parts WHERE image IS NOT NULL)")


def containing(connection: sqlite3.Connection, query: str) -> set[int]:
    """Return the chats with this text in name or messages. SQL's LIKE would ignore case for ASCII only."""
    wanted = _folded(query.strip())
    rows = connection.execute(
        """SELECT id, name FROM chats WHERE name IS NOT NULL
        UNION ALL SELECT chat, coalesce(text, parts.name) FROM messages JOIN parts ON message = messages.id
        UNION ALL SELECT chat, tool_calls FROM messages WHERE tool_calls <> ''"""
    )
    return {number for number, text in rows if wanted in _folded(_legible(text))}


def insert_messages(connection: sqlite3.Connection, chat: int, conversation: Conversation, start: int) -> None:
    """Write the messages from ``start`` on, and their images unless they are stored already."""
    for position, message in enumerate(conversation.messages[start:], start):
        row = connection.execute(
            "INSERT INTO messages (chat, position, role, tool_calls, name, call_id) VALUES (?, ?, ?, ?, ?, ?)",
            (chat, position, message.role, _stored_calls(message), _stored(message.name), _stored(message.call_id)),
        )
        for index, part in enumerate(message.parts):
            text, image, name = None, None, None
            if isinstance(part, TextPart):
                text = _stored(part.text)
            else:
                image, name = part.digest, _stored(part.name)
                connection.execute("INSERT OR IGNORE INTO images (digest, data) VALUES (?, ?)", (image, part.data))
            connection.execute(
                "INSERT INTO parts (message, position, text, image, name) VALUES (?, ?, ?, ?, ?)",
                (row.lastrowid, index, text, image, name),
            )


def _put(connection: sqlite3.Connection, chat: SavedChat) -> int:
    """Insert or update a chat's own row, except its name. Return its number, which is new for ``id`` 0."""
    row = connection.execute(
        """INSERT INTO chats (id, title, model, created, updated, settings, state, sequence)
        VALUES (?, ?, ?, ?, ?, ?, ?, (SELECT coalesce(max(sequence), 0) + 1 FROM chats))
        ON CONFLICT (id) DO UPDATE SET title = excluded.title, model = excluded.model, updated = excluded.updated,
            settings = excluded.settings, state = excluded.state, sequence = excluded.sequence""",
        (
            chat.id or None,
            chat.title,
            _stored(chat.model),
            chat.created.astimezone(UTC).isoformat(),
            chat.updated.astimezone(UTC).isoformat(),
            json.dumps(chat.settings),
            chat.state,
        ),
    )
    return chat.id or row.lastrowid or 0


def _read_conversation(connection: sqlite3.Connection, chat: int) -> Conversation:
    """Return all messages of a chat. Raise ValueError with what is damaged."""
    images: dict[str, bytes] = {}  # an image that is shown twice is read once
    messages = []
    rows = connection.execute(
        "SELECT id, role, tool_calls, name, call_id FROM messages WHERE chat = ? ORDER BY position", (chat,)
    ).fetchall()
    for number, role, calls, name, call_id in rows:
        if role not in get_args(Role):
            raise ValueError(f"a message has the unknown role {shown(role)}")
        parts: list[Part] = []
        for text, digest, image_name in connection.execute(
            "SELECT text, image, name FROM parts WHERE message = ? ORDER BY position", (number,)
        ).fetchall():
            if digest is None:
                parts.append(TextPart(_text(text)))
                continue
            if digest not in images:
                row = connection.execute("SELECT data FROM images WHERE digest = ?", (digest,)).fetchone()
                images[digest] = row[0] if row and isinstance(row[0], bytes) else b""
            image = ImagePart(images[digest], _text(image_name))
            if image.digest != digest:  # free: the engine needs the digest anyway, and the part caches it
                raise ValueError(f"the image {image.name} has changed")
            parts.append(image)
        messages.append(Message(role, tuple(parts), _read_calls(calls), _text(name), _text(call_id)))
    return Conversation(tuple(messages))


def _stored_calls(message: Message) -> str:
    """Return a message's tool calls as JSON text, which escapes lone surrogates; empty for none."""
    return json.dumps([call.as_dict() for call in message.tool_calls]) if message.tool_calls else ""


def _read_calls(stored: Any) -> tuple[ToolCall, ...]:
    """Invert ``_stored_calls``. Raise ValueError for anything else."""
    try:
        return read_calls(json.loads(stored)) if stored else ()
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError("its tool calls are damaged") from error


def _settings(stored: Any) -> dict[str, Any]:
    try:
        settings = json.loads(stored)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError("its settings are not JSON") from error
    if not isinstance(settings, dict):
        raise ValueError("its settings are not a JSON object")
    return settings


def _stored(text: str) -> str | bytes:
    """Return ``text`` as SQLite can store it: as bytes if it has lone surrogates (odd file names)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _text(value: Any) -> str:
    """Invert ``_stored``. Raise ValueError for anything else."""
    if isinstance(value, str):
        return value
    try:
        return bytes.decode(value, "utf-8", "surrogatepass")
    except (UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{shown(value)} is not text") from error


def _legible(value: Any) -> str:
    """Return as much of a value as is text, to search in it."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _common_prefix(one: Conversation, other: Conversation) -> int:
    """Return the number of equal messages at the start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (mine, yours) in pairs if mine != yours), min(len(one), len(other)))


def _time(text: Any) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{shown(text)} is not a time") from error


@contextmanager
def _readable(number: int) -> Iterator[None]:
    """Raise ChatStoreError for the ValueErrors of damaged rows."""
    try:
        yield
    except ValueError as error:
        raise unreadable(number, str(error)) from error
