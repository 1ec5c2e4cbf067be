"""Files of our own that others may have written: config.toml, a journal of quantize, saved chats."""

import json
from pathlib import Path

from mllama_cli.core.settings import parse_settings
from mllama_cli.quantization.journal import JOURNAL_NAME, QuantizeJournal, is_journal
from mllama_cli.system.json_file import read_toml
from mllama_cli.system.locks import Lock
from tests.fuzz.conftest import Fuzz
from tests.fuzz.inputs import changed, damaged

CONFIG = b"""model = "sketch"
temperature = 0.5
stop = ["a", "b"]
preview = true
log = "all"
"""
PIECES = (
    b"[[[[" * 900,
    b"x = 1979-05-27T07:32:00Z\n",
    b"[a.b]\n",
    b"9" * 5000,
    b'"""',
    b"\xff\xfe",
    b"= nan",
    b"= [1, 'x']",
)
FINGERPRINT = {"source": "s", "method": "m", "shards": 1}
ENTRY = {"name": "a", "done": True, "error": 0.5, "energy": 1.0}


def test_the_config_file(fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        parse_settings(read_toml(file), str(file))

    read(CONFIG)
    fuzz(read, damaged([CONFIG], PIECES))


def test_a_journal_of_quantize(fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / JOURNAL_NAME
    lock = Lock.acquire_for(str(file))
    assert lock is not None

    def resume(data: bytes) -> None:
        file.write_bytes(data)
        is_journal(file)
        QuantizeJournal(tmp_path, FINGERPRINT, lock)

    def lines(entry: object) -> bytes:
        return b"".join(json.dumps(each).encode() + b"\n" for each in (FINGERPRINT, ENTRY, entry))

    resume(lines(ENTRY))
    fuzz(resume, changed(ENTRY).map(lines) | damaged([lines(ENTRY)], [b"[" * 5000, b"9" * 5000]))
    lock.release()
