"""Messages, parts and pictures as rows of the database."""

import sqlite3
from typing import get_args

from mllama_cli.chat.storage.names import unreadable
from mllama_cli.core.conversation import Conversation, ImagePart, Message, Part, Role, TextPart


def insert_messages(connection: sqlite3.Connection, chat: int, conversation: Conversation, start: int) -> None:
    """Write the messages from ``start`` on, and those of their pictures that the file does not have."""
    for position, message in enumerate(conversation.messages[start:], start):
        row = connection.execute(
            "INSERT INTO messages (chat, position, role) VALUES (?, ?, ?)", (chat, position, message.role)
        )
        for place, part in enumerate(message.parts):
            text, image, name = None, None, None
            if isinstance(part, TextPart):
                text = packed(part.text)
            else:
                image, name = part.digest, packed(part.name)
                _keep_image(connection, part)
            connection.execute(
                "INSERT INTO parts (message, position, text, image, name) VALUES (?, ?, ?, ?, ?)",
                (row.lastrowid, place, text, image, name),
            )


def delete_messages(connection: sqlite3.Connection, chat: int, start: int) -> None:
    """Delete the messages from ``start`` on. Their pictures stay: see ``free_images``."""
    connection.execute("DELETE FROM messages WHERE chat = ? AND position >= ?", (chat, start))


def free_images(connection: sqlite3.Connection) -> None:
    """Delete the pictures that no message shows."""
    connection.execute("DELETE FROM images WHERE digest NOT IN (SELECT image FROM parts WHERE image IS NOT NULL)")


def read_conversation(connection: sqlite3.Connection, chat: int) -> Conversation:
    """All messages of a chat. ChatStoreError where a role is unknown or a picture is not what it was."""
    images: dict[str, bytes] = {}  # a picture that is shown twice is read once
    messages = []
    rows = connection.execute("SELECT id, role FROM messages WHERE chat = ? ORDER BY position", (chat,)).fetchall()
    for number, role in rows:
        if role not in get_args(Role):
            raise unreadable(chat, f"a message is of the unknown role {role!r}")
        parts: list[Part] = []
        for text, digest, name in connection.execute(
            "SELECT text, image, name FROM parts WHERE message = ? ORDER BY position", (number,)
        ).fetchall():
            if digest is None:
                parts.append(TextPart(unpacked(text)))
                continue
            if digest not in images:
                row = connection.execute("SELECT data FROM images WHERE digest = ?", (digest,)).fetchone()
                images[digest] = bytes(row[0]) if row else b""
            picture = ImagePart(images[digest], unpacked(name))
            if picture.digest != digest:  # no lost time: the engine asks for the digest, which stays with the part
                raise unreadable(chat, f"the picture {picture.name} is not what it was")
            parts.append(picture)
        messages.append(Message(role, tuple(parts)))
    return Conversation(tuple(messages))


def packed(text: str) -> str | bytes:
    """``text`` as SQLite can hold it: bytes where halves of surrogate pairs (odd file names) are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def unpacked(value: str | bytes) -> str:
    """The text that ``packed`` was given."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def _keep_image(connection: sqlite3.Connection, image: ImagePart) -> None:
    if connection.execute("SELECT 1 FROM images WHERE digest = ?", (image.digest,)).fetchone() is None:
        connection.execute("INSERT INTO images (digest, data) VALUES (?, ?)", (image.digest, image.data))
