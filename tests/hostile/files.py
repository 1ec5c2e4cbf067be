"""Files of the user's machine that others may have written: config.toml, captions, journals, saved chats."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mllama_cli.captioning.journal import CaptionJournal
from mllama_cli.captioning.listing import ImageEntry, find_images
from mllama_cli.captioning.output_file import OutputFile
from mllama_cli.captioning.records import MAX_RECORD_BYTES
from mllama_cli.captioning.sidecars import Sidecars
from mllama_cli.chat.storage.saved import SavedChat
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.core.caption_events import CaptionRecord
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import MllamaError
from mllama_cli.core.settings import parse_settings
from mllama_cli.quantization.journal import is_journal
from mllama_cli.system.json_file import read_toml
from tests.hostile.cases import Case
from tests.hostile.checkpoints import NOT_JSON

TOML: dict[str, bytes] = {
    "nested": b"x = " + b"[" * 10**5, "many digits": b"x = " + b"9" * 5000, "Latin-1": b"x = '\xe9'",
    "UTF-16": "model = 'x'".encode("utf-16"), "2 MB": b"# " + b"x" * 2 * 2**20, "a date": b"model = 1979-05-27",
    "a table": b"[model]\nx = 1", "tables": b"[[temperature]]\n" * 999, "an unknown key": b"\"\\u001b]0;x\" = 1",
    "infinity": b"temperature = inf", "a huge number": b"seed = 99999999999999999999999",
    "a list": b"stop = [1, 'x']",
    "dotted keys": b".".join([b"a"] * 5000) + b" = 1", "nothing": b"", "zeros": bytes(99),
}  # fmt: skip
CAPTIONS: dict[str, bytes] = {
    **NOT_JSON,
    "somebody's data": b'{"id": 1, "x": 2}\n{"id": 2}',
    "a path and a note": b'{"path": "/x/y.png", "note": "my data"}',
    "a line without end": b"x" * (MAX_RECORD_BYTES + 9),
    "a quoted field without end": b'"' + b"x\n" * (MAX_RECORD_BYTES // 2),
    "a field of 200,000 characters": b"x" * 200_000 + b"\n",
    "one column": b"path\nmine",
    "NULs": b"path,caption\n\0,\0\n",
}
RECORD = CaptionRecord("a.png", "x", 1, 1, 1, 0.1, "m", "p", "s")
STATEMENTS = (
    "UPDATE chats SET settings = '[1]'", "UPDATE chats SET settings = 'null'", "UPDATE chats SET settings = 5",
    "UPDATE chats SET settings = x'ff'", "UPDATE chats SET title = x'ff00'", "UPDATE chats SET title = 5",
    "UPDATE chats SET name = 5 WHERE id = 1", "UPDATE chats SET model = x'ff'", "UPDATE chats SET model = 1.5",
    "UPDATE chats SET created = 5", "UPDATE chats SET updated = x'ff'", "UPDATE chats SET updated = '2099-01-01'",
    "UPDATE chats SET updated = '0001-01-01T00:00:00+14:00'", "UPDATE chats SET state = x'ff'",
    "UPDATE messages SET role = x'ff'", "UPDATE messages SET role = 'x'",
    "UPDATE messages SET position = 'x' WHERE id = 1",
    "UPDATE parts SET text = x'ff'", "UPDATE parts SET text = 5", "UPDATE parts SET text = x'edA080'",
    "UPDATE chats SET settings = '" + "[" * 10**5 + "'", "UPDATE chats SET settings = '{\"system\": 5}'",
    "UPDATE chats SET name = char(27) || ']0;x' WHERE id = 1", "DROP TABLE parts", "DROP TABLE chats",
    "PRAGMA user_version = 99",
    "PRAGMA application_id = 5", "ALTER TABLE chats DROP COLUMN title", "DELETE FROM messages",
)  # fmt: skip


def cases() -> Iterator[Case]:
    """Yield such files. What is refused stays as it is."""
    for name, data in TOML.items():
        yield Case(f"config.toml: {name}", lambda folder, data=data: _settings(folder, data))
    for ending in (".jsonl", ".csv"):
        for overwrite in (False, True):
            for name, data in CAPTIONS.items():
                label = f"-o c{ending}{' --existing overwrite' if overwrite else ''}: {name}"
                yield Case(
                    label, lambda folder, e=ending, o=overwrite, d=data: _output(folder, e, o, d), len(data) > 2**20
                )
    for name, data in NOT_JSON.items():
        yield Case(f"journal: {name}", lambda folder, data=data: _journal(folder, data))
    yield Case("journal: a first line of 60 MB", lambda folder: _journal(folder, b"[" + b"0," * 30_000_000), heavy=True)
    for kind in ("link", "hard link", "dangling link", "pipe", "folder"):
        yield Case(f"a caption file that is a {kind}", lambda folder, kind=kind: _odd_caption_file(folder, kind))
    yield Case("a folder that a link leads back to", _loop)
    yield Case("names that are not UTF-8 or have control characters", _odd_names)


def chats() -> Iterator[Case]:
    """Yield saved chats with odd rows and damaged pages."""
    for statement in STATEMENTS:
        yield Case(f"chats.db: {statement[:60]}", lambda folder, s=statement: _saved(folder, s))
    for start in range(0, 40_000, 1000):
        yield Case(f"chats.db damaged at {start}", lambda folder, start=start: _saved(folder, "", start))
    for name, data in NOT_JSON.items():
        yield Case(f"chats.db: {name}", lambda folder, data=data: _read(_with(folder / "chats.db", data)))


def _settings(folder: Path, data: bytes) -> None:
    file = _with(folder / "config.toml", data)
    parse_settings(read_toml(file), str(file))


def _with(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


def _output(folder: Path, ending: str, overwrite: bool, data: bytes) -> None:
    file = _with(folder / f"c{ending}", data)
    try:
        output = OutputFile(str(file), overwrite=overwrite, run="x")
    except MllamaError:
        assert file.read_bytes() == data, "a file that is refused was changed"
        raise
    output.add(RECORD)
    output.finish(exhausted=True, complete=True)


def _journal(folder: Path, data: bytes) -> None:
    assert not is_journal(_with(folder / "journal", data))


def _odd_caption_file(folder: Path, kind: str) -> None:
    precious = _with(folder / "precious", b"my own")
    caption = folder / "a.txt"
    _with(folder / "a.png", b"x")
    if kind == "link":
        caption.symlink_to(precious)
    elif kind == "dangling link":
        caption.symlink_to(folder / "new")
    elif kind == "hard link":
        os.link(precious, caption)
    elif kind == "pipe":
        os.mkfifo(caption)
    else:
        caption.mkdir()
    entry = ImageEntry(str(folder / "a.png"), "a.png")
    journal = CaptionJournal("x", folder / "captions.db")
    sidecars = Sidecars(lambda _: str(caption), existing="append", journal=journal)
    try:
        lease = sidecars.acquire(entry)
        lease.write(RECORD)
        lease.release()
    finally:
        assert precious.read_bytes() == b"my own", "somebody's file was written to"
        assert not (folder / "new").exists(), "a file was made through a link"


def _loop(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "back").symlink_to(folder)
    _with(folder / "inner" / "a.png", b"x")
    assert len(find_images([str(folder)], recursive=True).entries) == 1


def _odd_names(folder: Path) -> None:
    for name in (b"\xff.png", b"\x1b]0;x\x07.png", b"a\nb.png", b"x" * 251 + b".png", b"9" * 200 + b".png", b"-rf.png"):
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(b"x")  # noqa: PTH118 - bytes
    assert len(find_images([str(folder)]).entries) == 6


def _saved(folder: Path, statement: str, damage: int | None = None) -> None:
    file = folder / "chats.db"
    store = ChatStore(file)
    for text in ("hello", "there", "x" * 9000):
        store.save(SavedChat.new("m"), Conversation.ask(text).with_assistant("y"))
    store.close()
    if statement:
        connection = sqlite3.connect(file)
        connection.execute(statement)
        connection.commit()
        connection.close()
    if damage is not None:
        data = bytearray(file.read_bytes())
        data[damage : damage + 200] = b"\xff" * len(data[damage : damage + 200])
        file.write_bytes(data)
    _read(file)


def _read(file: Path) -> None:
    """Do all that a user does with saved chats; each may fail by itself."""
    store = ChatStore(file)
    problems = []
    for action in (
        store.chats,
        lambda: store.chats("hello"),
        store.last,
        lambda: store.load(1),
        lambda: store.load("x"),
    ):
        try:
            action()
        except MllamaError as error:
            problems.append(error)
    store.close()
    if problems:
        raise problems[0]
