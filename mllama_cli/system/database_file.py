"""The file of a small database: create it for the user alone, and refuse what SQLite should not open."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from mllama_cli.system.files import exists, resolved
from mllama_cli.system.safe_files import UnsafeFileError, is_own, require_plain

_JOURNALS = ("-journal", "-wal", "-shm")
"""Endings of the files next to a database that SQLite plays back or maps."""


def create_private(path: Path) -> None:
    """Create the file and its folder, unless they exist, with access for the user alone. Raise OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def require_safe(path: Path) -> None:
    """Raise UnsafeFileError for what is not a regular file, and for a journal put there by another user or as a link.

    Raise OSError for what cannot be looked at.
    """
    file = resolved(path) if path.is_symlink() else path  # journals are next to the file itself
    if file != path and not exists(file):
        raise UnsafeFileError(str(path), "is a link to nothing")
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFileError(str(file), "is not a regular file")
    for suffix in _JOURNALS:
        name = f"{file}{suffix}"
        with suppress(FileNotFoundError):
            require_plain(name, journal := os.lstat(name))
            if not is_own(journal) and journal.st_uid != status.st_uid:
                raise UnsafeFileError(name, "belongs to another user")


def make_private(path: Path) -> None:
    """Keep others from reading a file of the user's own; leave another user's as it is."""
    with suppress(OSError):  # a file system without permissions
        status = path.stat()
        if is_own(status) and status.st_mode & 0o077:
            path.chmod(0o600)
