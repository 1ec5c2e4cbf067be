"""Helpers for files and folders that may be inaccessible, have impossible names or fill the disk."""

import errno
from collections.abc import Iterator
from pathlib import Path

from mllama_cli.core.errors import CheckpointError

_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no EDQUOT


def is_file(path: Path) -> bool:
    """Return whether a path is a file; an inaccessible path or an impossible name counts as absent."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; an inaccessible path or an impossible name counts as absent."""
    try:
        return path.is_dir()
    except OSError:
        return False


def expanded(name: str) -> Path:
    """Return the path with ~ expanded. The ~name of an unknown user is kept."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


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
