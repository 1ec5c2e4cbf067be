"""Read the Hugging Face cache (blobs, snapshots, refs) without importing huggingface_hub."""

import os
from pathlib import Path

from mllama_cli.core.errors import UsageError
from mllama_cli.system.files import expanded, is_file, subfolders
from mllama_cli.system.text_file import read_text


def hub_cache() -> Path:
    """Return the cache's folder, by HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME as in huggingface_hub."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return _expanded(cache)
    home = os.environ.get("HF_HOME")
    if not home:
        home = str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return _expanded(home) / "hub"


def repo_folder(repo: str) -> Path:
    """Return a repository's folder in the cache."""
    return hub_cache() / ("models--" + repo.replace("/", "--"))


def repos() -> list[str]:
    """Return the ids of the model repositories in the cache, complete or not."""
    names = (folder.name for folder in subfolders(hub_cache()))
    return [name.removeprefix("models--").replace("--", "/") for name in names if name.startswith("models--")]


def snapshots(repo: str) -> list[Path]:
    """Return the folders of a repository's cached commits, complete or not."""
    return subfolders(repo_folder(repo) / "snapshots")


def snapshot(repo: str, revision: str) -> Path | None:
    """Return the folder of a branch, tag or commit; None if the cache has no config.json of it."""
    folder = repo_folder(repo)
    try:
        commit = read_text(folder / "refs" / revision, limit=200, pipes=False).strip()
    except UsageError:
        commit = revision
    found = folder / "snapshots" / commit
    return found if commit and is_file(found / "config.json") else None


def current_snapshot(repo: str) -> Path | None:
    """Return the snapshot that ``main`` points to, else the newest with a config.json; None if there is none."""
    if (main := snapshot(repo, "main")) is not None:
        return main
    found = [folder for folder in snapshots(repo) if is_file(folder / "config.json")]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def _expanded(path: str) -> Path:
    return expanded(os.path.expandvars(path))
