"""A picture in work: its caption's file, begun beside its place under a name of its own, held while the model looks.

Nobody else takes a picture that is held, in another process or, on a shared disk, on another machine. The system lets
go of it when a process dies, however it dies; what it left is taken over by whoever comes next. When the caption is
there, it is written into that file, which then moves to its place as a whole.
"""

import os
import sys
from contextlib import suppress

if sys.platform != "win32":
    import fcntl

MARK = ".mllama"
"""Ending of a caption's file while it is in work; hidden, as its name also begins with a dot."""


class Claim:
    """``destination`` is where the caption will be. Made by ``Claim.take``."""

    def __init__(self, destination: str, path: str, file: int) -> None:
        self.destination = destination
        self._path = path
        self._file = file

    @classmethod
    def take(cls, destination: str) -> "Claim | None":
        """Hold the caption at ``destination``; None where another run holds it. OSError where it cannot be written."""
        folder, name = os.path.split(destination)
        path = os.path.join(folder, f".{name}{MARK}")
        while True:
            if sys.platform == "win32":
                # Windows lets nobody delete a file that is open: what can be deleted was left by the dead.
                try:
                    with suppress(FileNotFoundError):
                        os.unlink(path)
                    return cls(destination, path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_BINARY))
                except (PermissionError, FileExistsError):
                    return None
            file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                return None
            except OSError:
                os.close(file)
                raise
            # Whoever held it may have moved or removed it since it was opened: then it is not this name's any more.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return cls(destination, path, file)
            os.close(file)

    def write(self, text: str) -> None:
        """Put ``text`` at its place, whole or not at all, and let go. OSError leaves what was there before."""
        try:
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            data = memoryview(text.encode("utf-8", "replace"))
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
            if sys.platform == "win32":
                os.close(self._file)
                self._file = -1
            os.replace(self._path, self.destination)
        except OSError:
            self.drop()
            raise
        self._close()

    def drop(self) -> None:
        """Let go without a caption."""
        with suppress(OSError):
            if sys.platform == "win32":
                self._close()
            os.unlink(self._path)
        self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
