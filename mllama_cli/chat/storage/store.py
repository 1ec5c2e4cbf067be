"""Saved chats in one SQLite file.

Images are rows of that file, each stored once however many chats show it. Separate files would be read a little faster
(from about 100 kB on, by SQLite's own measurements), but a photo is read only when a chat is resumed, in tens of
milliseconds either way. As rows, images come and go in one transaction with the messages that show them, and one file
is the whole backup. SQLite's limit of 1 GB is above that of an image here (256 MiB).
"""

import json
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from mllama_cli.chat.storage import rows
from mllama_cli.chat.storage.names import LIST_HINT, checked_name, pick
from mllama_cli.chat.storage.saved import ChatSummary, SavedChat, now
from mllama_cli.chat.storage.schema import SCHEMA
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import ChatNotFoundError, UsageError
from mllama_cli.core.text import as_number
from mllama_cli.system.database import Database
from mllama_cli.system.paths import data_folder


class ChatStore:
    """The saved chats of one user. Any method may raise ChatStoreError, which loses nothing saved before.

    Several processes may use the same file. Reading does not create it.

    Args:
        path: the file; ``chats/chats.db`` in the user's data folder by default.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path if path is not None else data_folder() / "chats" / "chats.db"
        self._database = Database(self.path, SCHEMA)

    def close(self) -> None:
        self._database.close()

    def save(
        self,
        chat: SavedChat,
        conversation: Conversation,
        *,
        model: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> SavedChat:
        """Save a new state of a chat atomically; only messages that changed are written.

        A chat without a question is not kept unless it has a name. A chat that was deleted meanwhile is saved again.
        If another process has continued the chat, this state becomes a new chat with another ``id``.

        Args:
            chat: the last state, from ``SavedChat.new``, ``load``, ``last``, ``rename`` or ``save``.
            model, settings: unchanged if None.

        Returns:
            The state to pass to the next ``save``. After an error, pass ``chat`` again.
        """
        wanted = replace(
            chat,
            conversation=conversation,
            model=chat.model if model is None else model,
            # Compare as read back: a tuple becomes a list.
            settings=chat.settings if settings is None else json.loads(json.dumps(dict(settings))),
        )
        if wanted == chat:
            return chat
        with self._database.writing() as connection:
            return rows.update(connection, chat, replace(wanted, updated=now(), state=secrets.token_hex(8)))

    def load(self, name_or_id: str | int) -> SavedChat:
        """Return the chat with that number, name, or start of a name.

        Raise ChatNotFoundError, which suggests the nearest name, or UsageError if several names start so.
        """
        with self._reading(str(name_or_id)) as connection:
            return rows.read(connection, _find(connection, name_or_id))

    def last(self) -> SavedChat | None:
        """Return the most recently saved chat."""
        if not self._database.exists:
            return None
        with self._reading() as connection:
            number = rows.newest(connection)
            return None if number is None else rows.read(connection, number)

    def summary(self, name_or_id: str | int, *, exact: bool = False) -> ChatSummary:
        """Return the summary of a chat, found as by ``load``; ``exact`` takes no start of a name."""
        with self._reading(str(name_or_id)) as connection:
            number = _find(connection, name_or_id, exact=exact)
            return next(summary for summary in rows.summaries(connection) if summary.id == number)

    def chats(self, query: str = "", *, limit: int | None = None) -> list[ChatSummary]:
        """Return the saved chats, newest first; ``query`` selects those that contain it, ignoring case."""
        if not self._database.exists:
            return []
        with self._reading() as connection:
            found = rows.containing(connection, query) if query.strip() else None
            chosen = (each for each in rows.summaries(connection) if found is None or each.id in found)
            return list(islice(chosen, limit))

    def rename(self, chat: SavedChat, name: str, *, overwrite: bool = False) -> SavedChat:
        """Name a chat. ``overwrite`` takes the name from another chat, which keeps its number.

        Raise UsageError if the name is taken or not allowed, or if the chat is not saved yet.
        """
        kept = checked_name(name)
        with self._database.writing() as connection:
            for other, owner in rows.names(connection).items():
                if other.casefold() != kept.casefold() or owner == chat.id:
                    continue
                if not overwrite:
                    raise UsageError(f"Chat {owner} is called {other!r} already", "Choose another name.")
                rows.set_name(connection, owner, None)
            if not rows.set_name(connection, chat.id, kept):
                raise UsageError("There is nothing to name: the chat was not saved yet", "Ask something first.")
        return replace(chat, name=kept)

    def delete(self, ids: Iterable[int]) -> int:
        """Delete chats and the images that no other chat shows. Return the number of chats deleted."""
        if not self._database.exists:
            return 0
        wanted = set(ids)

        def work(connection: sqlite3.Connection) -> int:
            count = sum(rows.delete(connection, number) for number in wanted)
            rows.delete_unused_images(connection)
            return count

        return self._database.delete(work)

    @contextmanager
    def _reading(self, wanted: str = "") -> Iterator[sqlite3.Connection]:
        if not self._database.exists:
            raise ChatNotFoundError(f"There is no saved chat {wanted}: nothing was saved yet", LIST_HINT)
        with self._database.reading() as connection:
            yield connection


def _find(connection: sqlite3.Connection, name_or_id: str | int, *, exact: bool = False) -> int:
    number = name_or_id if isinstance(name_or_id, int) else as_number(name_or_id.strip())
    if number is None:
        return pick(str(name_or_id), rows.names(connection), exact=exact)
    if not rows.exists(connection, number):
        raise ChatNotFoundError(f"There is no saved chat {number}", LIST_HINT)
    return number
