"""Open locks, temporary files and outputs among the user's files without harming any of those.

A name may be taken by something that is not ours, by chance or planted in an unpacked archive. So nothing is opened
through a link, and only a regular file without hard links is written to; a temporary file has a random name and is
created exclusively; and what has a fixed name (a lock, see ``locks``) is removed or changed only if our marker is in
it. Names have a bounded length, however long the name is that they stand for.
"""

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

MAX_NAME_BYTES = 255
"""Longest file name on common file systems."""

_FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_TEMPORARY_NAME = re.compile(r"\.mllama-[0-9a-f]{16}\.tmp")


class UnsafeFileError(OSError):
    """Something that is not ours, or not safe to write to, has the name of a file. It was not touched."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(errno.EEXIST, f"{path} {reason}")


def open_regular(path: str, flags: int = os.O_RDWR, *, create: bool = False) -> int:
    """Return the descriptor of a regular file that has one name only. Raise UnsafeFileError for anything else."""
    while True:
        try:
            before = os.lstat(path)
        except FileNotFoundError:
            if not create:
                raise
            with suppress(FileExistsError):
                return os.open(path, flags | _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
            continue
        require_plain(path, before)
        try:
            file = os.open(path, flags | _FLAGS)
        except FileNotFoundError:
            continue
        if os.path.samestat(before, os.fstat(file)):
            return file
        os.close(file)


def open_marked(path: str, marker: bytes) -> BinaryIO:
    """Empty a file and return it for writing. Raise UnsafeFileError if it does not begin with ``marker``.

    It may also be a pipe or a device, such as /dev/stderr, which has nothing to lose.
    """
    with suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            return open(path, "wb")
    file = open(open_regular(path, create=True), "r+b")  # noqa: SIM115
    try:
        if (begun := file.read(len(marker))) and begun != marker:
            raise UnsafeFileError(path, "exists and is not a list of mllama's")
        file.truncate(0)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def require_plain(path: str, status: os.stat_result) -> None:
    """Raise UnsafeFileError unless ``status`` is that of a regular file with one name."""
    if stat.S_ISLNK(status.st_mode):
        raise UnsafeFileError(path, "is a link")
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFileError(path, "is not a regular file")
    if status.st_nlink > 1:
        raise UnsafeFileError(path, "has another name (it is a hard link)")


def is_own(status: os.stat_result) -> bool:
    """Return whether ``status`` is that of a file of this process's user; always true on Windows."""
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def read_regular(path: str, limit: int, *, follow: bool = False) -> bytes:
    """Return the bytes of a regular file of at most ``limit`` bytes. Raise OSError for anything else."""
    if not follow and stat.S_ISLNK(os.lstat(path).st_mode):
        raise UnsafeFileError(path, "is a link")
    flags = _FLAGS & ~getattr(os, "O_NOFOLLOW", 0) if follow else _FLAGS
    file = os.open(path, os.O_RDONLY | flags)
    with open(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise UnsafeFileError(path, "is not a regular file")
        data = opened.read(limit + 1)
    if len(data) > limit:
        raise UnsafeFileError(path, f"is larger than {limit // 2**20} MiB")
    return data


def neighbor_name(name: str, suffix: str) -> str:
    """Return ``name + suffix``, shortened with a digest of the name where no file system could hold it."""
    if len(os.fsencode(name + suffix)) <= MAX_NAME_BYTES:
        return name + suffix
    return f".mllama-{short_digest(name)}{suffix}"


@contextmanager
def replacing(target: str, random: str = "", *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Give a temporary file that replaces ``target`` in one step at the end, unless the block raises.

    A link at ``target`` is replaced, not followed. ``mode`` are the new file's permissions, less the umask.
    """
    temporary = temporary_path(os.path.dirname(target), random or secrets.token_hex(8))
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, mode)
    try:
        with open(file, "wb") as opened:
            yield opened
            opened.flush()
            os.fsync(file)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def create_exclusively(path: str, data: bytes) -> bool:
    """Write a new file. Return False, and write nothing, if there is anything of that name."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
    except FileExistsError:
        return False
    with open(file, "wb") as opened:
        opened.write(data)
    return True


def remove_plain(path: str) -> None:
    """Remove a regular file of ours that has one name; leave anything else."""
    with suppress(OSError):
        require_plain(path, os.lstat(path))
        os.unlink(path)


def is_temporary(name: str) -> bool:
    """Return whether a file has the name of one of our temporary files."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def temporary_path(folder: str, random: str) -> str:
    """Return the path of a temporary file in a folder."""
    return os.path.join(folder, f".mllama-{random}.tmp")


def short_digest(name: str) -> str:
    """Return a digest of a file name, to make other names of."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:24]
