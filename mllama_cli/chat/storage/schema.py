"""The database tables of saved chats."""

from mllama_cli.core.errors import ChatStoreError
from mllama_cli.system.database import Schema

_MIGRATIONS = (
    (
        # AUTOINCREMENT never reuses a number, so a chat deleted elsewhere cannot turn into another one.
        """CREATE TABLE chats (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT UNIQUE,
            title TEXT NOT NULL,
            model TEXT NOT NULL,
            created TEXT NOT NULL,
            updated TEXT NOT NULL,
            settings TEXT NOT NULL,
            state TEXT NOT NULL
        )""",
        """CREATE TABLE messages (
            id INTEGER PRIMARY KEY,
            chat INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            role TEXT NOT NULL,
            UNIQUE (chat, position)
        )""",
        "CREATE TABLE images (digest TEXT PRIMARY KEY, data BLOB NOT NULL)",
        """CREATE TABLE parts (
            message INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            text TEXT,
            image TEXT REFERENCES images (digest),
            name TEXT,
            PRIMARY KEY (message, position),
            CHECK ((text IS NULL) <> (image IS NULL))
        )""",
        "CREATE INDEX parts_image ON parts (image) WHERE image IS NOT NULL",
    ),
    (
        # The order of saving, as the clock may have been wrong: `last` is the chat with the largest number.
        "ALTER TABLE chats ADD COLUMN sequence INTEGER NOT NULL DEFAULT 0",
        """UPDATE chats SET sequence = (
            SELECT count(*) FROM chats AS other
            WHERE other.updated < chats.updated OR (other.updated = chats.updated AND other.id <= chats.id)
        )""",
        # JSON as OpenAI has it; '' for none. The others are of a message that answers a call.
        "ALTER TABLE messages ADD COLUMN tool_calls TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE messages ADD COLUMN name TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE messages ADD COLUMN call_id TEXT NOT NULL DEFAULT ''",
    ),
)
"""Statements that upgrade the schema from version n, the index here, to n + 1. Only ever append."""

SCHEMA = Schema(_MIGRATIONS, ChatStoreError, moved_by="MLLAMA_HOME")
