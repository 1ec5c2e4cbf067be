"""History of typed messages, in a file that only its owner can read."""

import os
from collections.abc import Callable
from pathlib import Path

from prompt_toolkit.history import FileHistory


class PrivateHistory(FileHistory):
    """prompt_toolkit's history file with mode 0600. A write failure is reported once, and the chat continues."""

    def __init__(self, path: Path, on_error: Callable[[str], None]) -> None:
        self._on_error: Callable[[str], None] | None = on_error
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o600))
            path.chmod(0o600)
        except OSError as error:
            self._failed(error)
        super().__init__(str(path))

    def store_string(self, string: str) -> None:
        """Append an entry without lone surrogates, which no file can hold."""
        try:
            super().store_string(string.encode("utf-8", "ignore").decode())
        except OSError as error:
            self._failed(error)

    def load_history_strings(self) -> list[str]:
        """Return the entries, newest first."""
        try:
            return list(super().load_history_strings())
        except OSError as error:
            self._failed(error)
            return []

    def _failed(self, error: OSError) -> None:
        if self._on_error is not None:
            self._on_error(f"Input history is not saved: {error.strerror} ({error.filename})")
            self._on_error = None
