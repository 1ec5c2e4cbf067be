"""Delete a downloaded or local model."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from mllama_cli.core.config import MODEL_TYPES
from mllama_cli.core.errors import ModelNotFoundError, RemovalError
from mllama_cli.hub.cache import hub_cache, repo_folder, snapshots
from mllama_cli.hub.catalog import hub_id, installed, is_built_in, local_model, models_folder, nearest
from mllama_cli.hub.kinds import config_of
from mllama_cli.hub.plan import is_companion_file
from mllama_cli.system.files import expanded, files_below, is_file, is_folder, resolved


@dataclass(frozen=True)
class Removal:
    """A folder to delete, and the bytes that this frees."""

    name: str
    folder: Path
    size: int

    def run(self) -> None:
        """Delete the folder, or only the link if it is one. Raise RemovalError if the system refuses."""
        try:
            if self.folder.is_symlink():
                self.folder.unlink()
            else:
                shutil.rmtree(self.folder)
        except OSError as error:
            raise RemovalError(
                f"{self.name} could not be deleted: {error.strerror}: {error.filename}", "Check who owns the folder."
            ) from error


def plan_removal(name: str) -> Removal:
    """Return the removal of a model, whose name is resolved as by ``catalog.resolve``, complete or not.

    Removes a local model, or all snapshots and blobs of a repository in the hub cache. Raises RemovalError for a folder
    elsewhere or another program's model in the cache, ModelNotFoundError if there is none.
    """
    folder = expanded(name)
    if name and is_folder(folder):
        return _by_path(name, folder)
    if (local := local_model(name)) is not None:
        return _local(local)
    if is_built_in(name):
        raise RemovalError(f"{name} is the built-in model: it is part of mllama", "It takes 12 MB.")
    repo = hub_id(name)
    if repo is not None and is_folder(repo_folder(repo)):
        return _downloaded(repo)
    raise ModelNotFoundError(
        f"There is no model called {name!r} on this machine",
        f"{nearest(name, (entry.name for entry in installed()))}`mllama list` shows what is here.",
    )


def _by_path(name: str, folder: Path) -> Removal:
    """Return the removal of a path that `mllama download` or `show` printed. No other folder may be deleted."""
    # Don't resolve the last component: a link in our models folder is ours, its target is not. ".." is not a name.
    path = resolved(folder) if folder.name in ("", "..") else resolved(folder.parent) / folder.name
    if path.parent == resolved(models_folder()):
        return _local(models_folder() / path.name)
    repo, cache = path.parent.parent, resolved(hub_cache())
    if path.parent.name == "snapshots" and repo.parent == cache and repo.name.startswith("models--"):
        return _downloaded(repo.name.removeprefix("models--").replace("--", "/"))
    hint = "Delete it yourself if you are sure."
    hub = hub_id(name)
    if local_model(name) is not None or (hub is not None and is_folder(repo_folder(hub))):
        hint = "A folder comes before a model of the same name. For the model, run this in another folder."
    raise RemovalError(f"{name} is a folder of yours, not a model that mllama keeps", hint)


def _local(folder: Path) -> Removal:
    return Removal(folder.name, folder, 0 if folder.is_symlink() else _size(folder))


def _downloaded(repo: str) -> Removal:
    # The cache is shared: don't delete other programs' models, which `mllama list` doesn't show.
    if any(_is_foreign(snapshot) for snapshot in snapshots(repo)):
        raise RemovalError(
            f"{repo} is in the Hugging Face cache, but it is not an mllama model",
            f"`hf cache rm model/{repo}` deletes it.",
        )
    return Removal(repo, repo_folder(repo), _size(repo_folder(repo)))


def _is_foreign(snapshot: Path) -> bool:
    """Return whether a snapshot is neither a model that we run nor an incomplete download of one."""
    if is_file(snapshot / "config.json"):
        return config_of(snapshot).get("model_type", "mllama") not in MODEL_TYPES
    return any(not is_companion_file(file.name) for file in snapshot.iterdir())


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in files_below(folder) if not file.is_symlink())
