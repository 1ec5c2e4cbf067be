"""Files and folders whatever their names, owners and contents, and what the file system's errors mean."""

import errno
from collections.abc import Iterator
from pathlib import Path

from mllama_cli.core.errors import CheckpointError

_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no EDQUOT


def is_file(path: Path) -> bool:
    """Like Path.is_file; what cannot be accessed, or has an impossible name, counts as absent."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Like Path.is_dir; what cannot be accessed, or has an impossible name, counts as absent."""
    try:
        return path.is_dir()
    except OSError:
        return False


def expanded(name: str) -> Path:
    """Return the path that a user writes, with ~ expanded. The ~ of an unknown user stays as it is."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders inside, by name; none where it does not exist. Raises CheckpointError for no access."""
    try:
        inside = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}", "Check who owns the folder.") from error
    return sorted(filter(is_folder, inside), key=lambda entry: entry.name.lower())


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file below, links followed and broken links left out."""
    return filter(is_file, folder.rglob("*"))


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or what caused it, is a disk (or a quota) without room."""
    return (isinstance(error, OSError) and error.errno in _FULL) or (
        error.__cause__ is not None and is_disk_full(error.__cause__)
    )
