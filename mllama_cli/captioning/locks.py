"""Lock caption files: a hidden file next to the caption is locked while the image is being captioned.

The lock keeps other processes on this machine from captioning the same image. Other machines that share the disk may
not see it (on some network file systems flock does nothing): split the images between them with --shard. The system
releases the lock when the process exits, and the next run takes over the file that is left. The finished caption is
written into the locked file, which then replaces the caption file atomically.
"""

import os
import sys
from contextlib import suppress

if sys.platform != "win32":
    import fcntl

LOCK_SUFFIX = ".mllama"


class CaptionLock:
    """The lock on the caption file at ``destination``. Create it with ``CaptionLock.acquire``."""

    def __init__(self, destination: str, path: str, file: int) -> None:
        self.destination = destination
        self._path = path
        self._file = file
        self._held = True

    @classmethod
    def acquire(cls, destination: str) -> "CaptionLock | None":
        """Return the lock, or None if another run holds it. Raise OSError if nothing can be written there."""
        folder, name = os.path.split(destination)
        path = os.path.join(folder, f".{name}{LOCK_SUFFIX}")
        while True:
            if sys.platform == "win32":
                # Windows does not delete open files: one that can be deleted was left by a process that exited.
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
            # The last holder may have moved or removed the file since it was opened: then this lock protects nothing.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return cls(destination, path, file)
            os.close(file)

    def write(self, text: str) -> None:
        """Replace the caption file and release the lock. After an OSError the old caption is intact."""
        try:
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            data = memoryview(text.encode("utf-8", "replace"))
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
            if sys.platform == "win32":
                self._close()
            os.replace(self._path, self.destination)
        except OSError:
            self.release()
            raise
        self._held = False
        self._close()

    def release(self) -> None:
        """Release the lock without writing a caption. Does nothing if it is already released."""
        if not self._held:  # the file may be another run's by now
            return
        self._held = False
        with suppress(OSError):
            if sys.platform == "win32":
                self._close()
            os.unlink(self._path)
        self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
