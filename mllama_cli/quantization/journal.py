"""A journal of finished units, from which an interrupted run resumes."""

import io
import json
import os
from pathlib import Path
from typing import Any

from mllama_cli.core.errors import MllamaError
from mllama_cli.system.json_file import MAX_JSON_BYTES, parse_json
from mllama_cli.system.locks import Lock
from mllama_cli.system.safe_files import read_regular
from mllama_cli.system.text_file import open_file

JOURNAL_NAME = ".quantize.jsonl"
MAX_JOURNAL_BYTES = 4 * 2**20
"""More than thirty thousand matrices take; the largest models have two thousand."""

FINGERPRINT_KEYS = {"source", "method", "shards"}


def is_journal(path: Path) -> bool:
    """Return whether a file is a journal of ours, which shows that the folder is ours, too."""
    try:
        with open_file(path, pipes=False) as file:
            line = file.readline(MAX_JSON_BYTES + 1)
        first = parse_json(line, path.name) if len(line) <= MAX_JSON_BYTES else None
    except (OSError, MllamaError):
        return False
    return isinstance(first, dict) and first.keys() == FINGERPRINT_KEYS


class QuantizeJournal:
    """JSON lines in the folder that is being written: the plan's fingerprint, then a line for each finished unit.

    ``errors`` holds, by unit, the sums of squared errors and of squared weights. A line that a killed process left
    incomplete is dropped, and with it the unit.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], lock: Lock) -> None:
        self._path = folder / JOURNAL_NAME
        self._lock = lock
        self.errors: dict[str, tuple[float, float]] = {}
        self._waiting: list[bytes] = []
        self.continues = self._resume(fingerprint)
        if not self.continues:
            self._rewrite(_line(fingerprint))

    def _resume(self, fingerprint: dict[str, Any]) -> bool:
        try:
            data = read_regular(str(self._path), MAX_JOURNAL_BYTES)
        except OSError:
            return False
        sound = data[: data.rfind(b"\n") + 1]
        lines = io.BytesIO(sound)
        if lines.readline() != _line(fingerprint):
            return False
        if len(sound) < len(data):
            self._rewrite(sound)
        try:
            for line in lines:
                entry = json.loads(line)
                if entry["done"]:
                    self.errors[entry["name"]] = (float(entry["error"]), float(entry["energy"]))
                else:
                    self.errors.pop(entry["name"], None)
        except (ValueError, TypeError, LookupError, RecursionError):
            self.errors.clear()
            return False
        return True

    def _rewrite(self, data: bytes) -> None:
        with self._lock.replacing(str(self._path)) as file:
            file.write(data)

    def forget(self, names: set[str]) -> None:
        """Mark units as not done, since their file is gone."""
        self._append([_line({"name": name, "done": False}) for name in names & self.errors.keys()])
        for name in names:
            self.errors.pop(name, None)

    def finished(self, name: str, error: float, energy: float) -> None:
        """Note a finished unit; it counts from the next ``flush`` on."""
        self.errors[name] = (error, energy)
        self._waiting.append(_line({"name": name, "done": True, "error": error, "energy": energy}))

    def flush(self) -> None:
        """Write the finished units. Call this only once their data are on disk."""
        self._append(self._waiting)
        self._waiting = []

    def _append(self, lines: list[bytes]) -> None:
        if not lines:
            return
        with self._path.open("ab") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"
