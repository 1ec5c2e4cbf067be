"""Folders of pictures and their captions."""

from pathlib import Path

DATA = Path(__file__).parents[2] / "data"


def names(folder: Path) -> list[str]:
    """Return the names of all that is in a folder, in order."""
    return sorted(path.name for path in folder.iterdir())
