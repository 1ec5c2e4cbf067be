"""Try again, later and later, what a store far away failed to do."""

import io
import random
import threading
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from mllama_cli.captioning.shards.store import StoreError
from mllama_cli.core.errors import MllamaError

BACK_OFF_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""How long to wait before each further attempt, up to half of it more or less."""

BUFFER_BYTES = 2**20

_LIBRARIES = ("aiohttp", "botocore", "aiobotocore", "s3fs", "gcsfs", "google", "requests", "urllib3", "fsspec")
_NO_LOGIN = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound")
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)

T = TypeVar("T")


def retrying(work: Callable[[], T], path: str) -> T:
    """Return what ``work`` returns, after several attempts if a store or the network fails.

    Raises StoreError after the last one. Errors that will not go away (no such file, no permission, ...) pass.
    """
    for seconds in (*BACK_OFF_SECONDS, None):
        try:
            return work()
        except Exception as error:
            if not _is_transient(error):
                raise
            if seconds is None:
                tries = len(BACK_OFF_SECONDS) + 1
                raise StoreError(
                    f"{path}: the store failed {tries} times: {reason_of(error)}",
                    "Try again later: what is written stays, and the same command goes on.",
                ) from error
        _pause(seconds * random.uniform(0.5, 1.5))
    raise AssertionError


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def has_no_login(error: Exception) -> bool:
    """Return whether a store's library says that it has no key to log in with."""
    return type(error).__name__ in _NO_LOGIN


def is_bad_name(error: Exception) -> bool:
    """Return whether an error says that no bucket or object can have that name."""
    return type(error).__name__ == "ParamValidationError" or str(error).startswith("Bad Request")


def is_refused(error: Exception) -> bool:
    """Return whether a store says that the user has not the right to do this."""
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden"):
        return True
    return getattr(error, "code", None) == 401 and "Invalid Credentials" not in str(error)  # of a token that expired


_ARE_FINAL = (has_no_login, is_bad_name, is_refused)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, (*_FINAL, MllamaError)) or any(is_final(error) for is_final in _ARE_FINAL):
        return False
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES


def reason_of(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class RetryingFile(io.RawIOBase):
    """A file far away, opened again where it broke off.

    Args:
        open_again: opens the file at its start.
    """

    def __init__(self, open_again: Callable[[], BinaryIO], path: str) -> None:
        self._open_again, self._path = open_again, path
        self._position = 0
        self._file: BinaryIO | None = retrying(open_again, path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET:
            self._position = offset
        elif whence == io.SEEK_CUR:
            self._position += offset
        else:
            self._position = retrying(lambda: self._current().seek(offset, io.SEEK_END), self._path)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = retrying(lambda: self._read(len(buffer)), self._path)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed and self._file is not None:
            self._file.close()
        super().close()

    def _read(self, size: int) -> bytes:
        file = self._current()
        try:
            if file.tell() != self._position:
                self._move(file)
            return file.read(size)
        except Exception:
            self._file = None
            raise

    def _move(self, file: BinaryIO) -> None:
        if file.seekable():
            file.seek(self._position)
            return
        left = self._position - file.tell()  # a server that sends only whole files
        while left > 0 and (data := file.read(min(left, BUFFER_BYTES))):
            left -= len(data)

    def _current(self) -> BinaryIO:
        if self._file is None:
            self._file = self._open_again()
        return self._file
