"""Helpers for files and folders that may be inaccessible, have impossible names or fill the disk."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mllama_cli.core.errors import CheckpointError

_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no EDQUOT


def expanded(name: str | Path) -> Path:
    """Return the path with ~ expanded. The ~name of an unknown or impossible user is kept."""
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError):  # ValueError: a name of a user with a NUL or a lone surrogate
        return Path(name)


def resolved(path: Path) -> Path:
    """Return the absolute path behind links. Of links in a circle, which Path.resolve may refuse, return one."""
    return Path(os.path.realpath(path))


def status_of(path: str | Path) -> os.stat_result | None:
    """Return what the system says about a path: None if it is absent or inaccessible, or its name impossible."""
    try:
        return os.stat(path)  # noqa: PTH116 - also takes what no Path can be
    except (OSError, ValueError):  # ValueError: a name with a NUL or a lone surrogate
        return None


def exists(path: str | Path) -> bool:
    """Return whether there is anything at a path, as ``status_of`` sees it."""
    return status_of(path) is not None


def is_file(path: str | Path) -> bool:
    """Return whether a path is a regular file, as ``status_of`` sees it."""
    status = status_of(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder(path: str | Path) -> bool:
    """Return whether a path is a folder, as ``status_of`` sees it."""
    status = status_of(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders inside, by name; none if it does not exist. Raise CheckpointError if it is inaccessible."""
    try:
        inside = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}", "Check who owns the folder.") from error
    return sorted(filter(is_folder, inside), key=lambda entry: entry.name.lower())


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file below, following links and leaving out broken ones."""
    return filter(is_file, folder.rglob("*"))


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error or its cause is a full disk or an exhausted quota."""
    return (isinstance(error, OSError) and error.errno in _FULL) or (
        error.__cause__ is not None and is_disk_full(error.__cause__)
    )
