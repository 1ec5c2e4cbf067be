"""Deletes a model that lives in one of our places."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from mllama_cli.checkpoint.catalog import hub_id, models_folder, repo_folder
from mllama_cli.core.errors import ModelNotFoundError, RemovalError


@dataclass(frozen=True)
class Removal:
    """What would be deleted: one folder, and how many bytes that frees."""

    name: str
    folder: Path
    size: int

    def run(self) -> None:
        """Delete it. Raises RemovalError where the system refuses."""
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            raise RemovalError(
                f"{self.name} could not be deleted: {error.strerror}: {error.filename}", "Check who owns the folder."
            ) from error


def plan_removal(name: str) -> Removal:
    """Find a local model or a repository of the hub cache, complete or not. Never a folder elsewhere (RemovalError)."""
    local = models_folder() / name
    if name and "/" not in name and name not in (".", "..") and local.is_dir():
        return Removal(name, local, _size(local))
    repo = hub_id(name)
    # All of a repository goes: snapshots and the blobs they link to, also of an unfinished download.
    if repo is not None and repo_folder(repo).is_dir():
        return Removal(repo, repo_folder(repo), _size(repo_folder(repo)))
    if Path(name).expanduser().is_dir():
        raise RemovalError(
            f"{name} is a folder of yours, not a model that mllama keeps", "Delete it yourself if you are sure."
        )
    raise ModelNotFoundError(f"There is no model called {name!r} on this machine", "`mllama list` shows what is here.")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
