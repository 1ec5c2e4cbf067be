"""Locks on files, which the system releases when the process exits."""

import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from mllama_cli.system.safe_files import (
    UnsafeFileError,
    is_own,
    open_regular,
    remove_plain,
    replacing,
    short_digest,
    temporary_path,
)

if sys.platform != "win32":
    import fcntl

LOCK_MARKER = b"mllama lock\n"
"""The first line of a lock file. The second is the random part of its holder's temporary name."""

_LOCK_NAME = re.compile(r"\.mllama-[0-9a-f]{24}\.lock")
_LOCK_TEXT = re.compile(re.escape(LOCK_MARKER) + rb"([0-9a-f]{16})\n")


class Lock:
    """An exclusive lock on a file, which the system releases when the process exits. Create it with ``acquire``.

    The file that a killed process leaves names its temporary file, so that the next holder removes both.
    """

    def __init__(self, path: str, file: int) -> None:
        self._path = path
        self._file = file
        self._random = secrets.token_hex(8)

    @classmethod
    def acquire(cls, path: str) -> "Lock | None":
        """Return the lock, or None if it is held. Raise UnsafeFileError if something else has that name."""
        while True:
            lock = cls(path, open_regular(path, create=True))
            kept = False
            try:
                if not lock._hold():
                    return None
                # The last holder may have removed the file since it was opened: then this lock protects nothing.
                if lock._is_current():
                    lock._take_over()
                    kept = True
                    return lock
            finally:
                if not kept:
                    lock._close()

    @classmethod
    def acquire_for(cls, target: str) -> "Lock | None":
        """Return a lock on writing ``target``, a hidden file next to it, as ``acquire`` does.

        It keeps other processes on this machine out. Other machines that share the disk may not see it (on some network
        file systems flock does nothing).
        """
        folder, name = os.path.split(target)
        return cls.acquire(os.path.join(folder, f".mllama-{short_digest(name)}.lock"))

    @classmethod
    def inherited(cls, path: str, file: int) -> "Lock":
        """Return the lock that the process which started this one has handed over with its descriptor."""
        os.set_inheritable(file, False)
        return cls(path, file)

    @property
    def descriptor(self) -> int:
        """The open file, for a process that is started and shall hold the lock from its first moment on."""
        return self._file

    def hand_over(self) -> None:
        """Leave the lock to a process that has inherited the descriptor, which then holds it alone."""
        self._close()

    @contextmanager
    def replacing(self, target: str, *, mode: int = 0o666) -> Iterator[BinaryIO]:
        """Do as the function of that name. The next holder of the lock removes what a killed process leaves."""
        with replacing(target, self._random, mode=mode) as file:
            yield file

    def release(self) -> None:
        """Remove the file and release the lock. Does nothing if it is already released."""
        if self._file < 0:
            return
        with suppress(OSError):
            if self._is_current():
                if sys.platform == "win32":  # which does not remove open files
                    self._close()
                os.unlink(self._path)
        self._close()

    def _hold(self) -> bool:
        try:
            if sys.platform == "win32":
                import msvcrt

                os.lseek(self._file, 2**30, os.SEEK_SET)  # beyond the text, which others may read
                msvcrt.locking(self._file, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _is_current(self) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._file), os.lstat(self._path))
        return False

    def _take_over(self) -> None:
        os.lseek(self._file, 0, os.SEEK_SET)
        text = os.read(self._file, 100)
        if text:
            found = _LOCK_TEXT.fullmatch(text)
            whole = LOCK_MARKER + b"0" * 16 + b"\n"
            if found is None and not (len(text) < len(whole) and whole.startswith(text[: len(LOCK_MARKER)])):
                raise UnsafeFileError(self._path, "is not a lock of mllama")
            if not is_own(os.fstat(self._file)):
                raise UnsafeFileError(self._path, "belongs to another user")
            if found:
                remove_plain(temporary_path(os.path.dirname(self._path), found[1].decode()))
        try:
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, LOCK_MARKER + self._random.encode() + b"\n")
        except OSError:
            self.release()
            raise

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def remove_abandoned_locks(folder: str) -> None:
    """Remove the locks, and their temporary files, that killed processes left in a folder."""
    found: list[str] = []
    with suppress(OSError), os.scandir(folder or ".") as inside:
        found = [os.path.join(folder, entry.name) for entry in inside if _LOCK_NAME.fullmatch(entry.name)]
    for path in found:
        with suppress(OSError):
            lock = Lock.acquire(path)
            if lock is not None:
                lock.release()
