"""Looking into folders that may be named, owned or laid out in ways nobody foresaw."""

from collections.abc import Iterator
from pathlib import Path

from mllama_cli.core.errors import CheckpointError


def is_file(path: Path) -> bool:
    """Like Path.is_file; what may not be looked at, or has an impossible name, counts as absent."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Like Path.is_dir; what may not be looked at, or has an impossible name, counts as absent."""
    try:
        return path.is_dir()
    except OSError:
        return False


def expanded(name: str) -> Path:
    """A path as a person writes it, with ~. A ~ of nobody's stays as it is."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def subfolders(folder: Path) -> list[Path]:
    """Folders inside, by name; none where it does not exist. CheckpointError where it may not be read."""
    try:
        inside = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}", "Check who owns the folder.") from error
    return sorted(filter(is_folder, inside), key=lambda entry: entry.name.lower())


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below, links followed; broken links are left out."""
    return filter(is_file, folder.rglob("*"))
