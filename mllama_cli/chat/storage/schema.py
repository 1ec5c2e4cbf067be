"""The tables that saved chats are kept in."""

from mllama_cli.core.errors import ChatStoreError
from mllama_cli.system.database import Schema

_MIGRATIONS = (
    (
        # AUTOINCREMENT: a number is never given twice, so a chat that was deleted elsewhere cannot become another one.
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
)
"""Statements that lead from each version of the schema (its place here, from 0) to the next. Only ever add to them."""

SCHEMA = Schema(_MIGRATIONS, ChatStoreError, moved_by="MLLAMA_HOME")
