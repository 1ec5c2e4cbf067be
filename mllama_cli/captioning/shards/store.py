"""Where shards are read and captions are written: folders of this machine, or any file system that fsspec knows."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Protocol

from mllama_cli.core.errors import CaptionError
from mllama_cli.system.files import expanded
from mllama_cli.system.patterns import matches
from mllama_cli.system.safe_files import create_exclusively, is_temporary, read_regular, replacing, temporary_path

MAX_SMALL_BYTES = 2**20
"""Longest lease, summary and note of settings."""

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)


class StoreError(CaptionError):
    """A store that does not answer, or refuses, after all attempts."""


class Store(Protocol):
    """The files of one place. Paths are those that the user writes. Methods raise StoreError."""

    def found(self, path: str) -> list[str] | None:
        """Return the files in a folder, or those that a pattern matches; None if ``path`` is a file."""
        ...

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading. Raise StoreError if it does not exist."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the paths of all files below a folder, relative to it; none if there is no such folder."""
        ...

    def exists(self, path: str) -> bool: ...

    def read(self, path: str) -> bytes | None:
        """Return a small file's bytes; None if it does not exist."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write a small file, or replace it in one step."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write a small file unless there is one of that name, in one step. Return whether it was written."""
        ...

    def publish(self, file: BinaryIO, path: str) -> bool:
        """Copy a whole file to ``path``, where it appears whole, unless there is one already. Return whether it did."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file, if it exists."""
        ...


def scheme_of(path: str) -> str:
    """Return what precedes :// in lower case; empty for a path of this machine."""
    found = _ADDRESS.match(path)
    return found[1].lower() if found else ""


class LocalStore:
    """Folders of this machine, also those that machines share."""

    def found(self, path: str) -> list[str] | None:
        path = str(expanded(path))
        if os.path.isdir(path):
            with _failing(path):
                return [os.path.join(path, name) for name in os.listdir(path) if not name.startswith(".")]
        return matches(path)

    def open(self, path: str) -> BinaryIO:
        try:
            with _failing(path):
                return open(expanded(path), "rb")
        except FileNotFoundError as error:
            raise StoreError(f"no such file: {path}", "Check the path.") from error

    def names(self, folder: str) -> list[str]:
        found = []
        for inside, _, files in os.walk(expanded(folder)):
            below = os.path.relpath(inside, expanded(folder))
            whole = [name for name in files if not is_temporary(name)]
            found += [name if below == os.curdir else f"{below}/{name}".replace(os.sep, "/") for name in whole]
        return found

    def exists(self, path: str) -> bool:
        return os.path.lexists(expanded(path))

    def read(self, path: str) -> bytes | None:
        with _failing(path), suppress(FileNotFoundError):
            return read_regular(str(expanded(path)), MAX_SMALL_BYTES)
        return None

    def write(self, path: str, data: bytes) -> None:
        with _failing(path), replacing(_made(path)) as file:
            file.write(data)

    def create(self, path: str, data: bytes) -> bool:
        with _failing(path):
            return create_exclusively(_made(path), data)

    def publish(self, file: BinaryIO, path: str) -> bool:
        file.seek(0)
        with _failing(path):
            target = _made(path)
            temporary = temporary_path(os.path.dirname(target), secrets.token_hex(8))
            try:
                with open(temporary, "xb") as copy:
                    shutil.copyfileobj(file, copy, 2**20)
                    copy.flush()
                    os.fsync(copy.fileno())
                return _linked(temporary, target)
            finally:
                with suppress(OSError):
                    os.unlink(temporary)

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError), _failing(path):
            os.unlink(expanded(path))


def _made(path: str) -> str:
    target = str(expanded(path))
    os.makedirs(os.path.dirname(target) or os.curdir, exist_ok=True)
    return target


def _linked(temporary: str, target: str) -> bool:
    """Give a file its name unless that is taken. Return whether it was free."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            return False
        os.rename(temporary, target)
    return True


@contextmanager
def _failing(path: str) -> Iterator[None]:
    """Turn an OSError into a StoreError, but for a missing file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        hint = "Check the permissions and the free space."
        raise StoreError(f"{path}: {error.strerror or error}", hint) from error
