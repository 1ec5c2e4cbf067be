"""Plan a download: a model's files on the Hub, and how much of each has already arrived."""

import re
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mllama_cli.checkpoint.files import INDEX_FILE, SINGLE_FILE, index_names
from mllama_cli.core.config import MODEL_TYPES
from mllama_cli.core.errors import CheckpointError, DownloadError, MllamaError
from mllama_cli.hub.cache import hub_cache, repo_folder
from mllama_cli.hub.client import get_bytes, hub_url, quiet
from mllama_cli.hub.errors import translated
from mllama_cli.hub.listing import hub_listing
from mllama_cli.hub.transfer import abandoned_partials
from mllama_cli.system.files import exists, is_file
from mllama_cli.system.json_file import MAX_JSON_BYTES, parse_object, read_json

COMPANION_FILES = (
    "config.json", INDEX_FILE, "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer*", "special_tokens_map.json", "chat_template*", "LICENSE*", "USE_POLICY*", "README.md",
)  # fmt: skip
"""Files that a model needs in addition to its weights. Never original/, *.pth, *.bin or *.gguf."""

_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


@dataclass(frozen=True)
class HubFile:
    """A file of the model. ``etag`` names its blob in the cache; ``here`` counts the bytes that have arrived."""

    name: str
    size: int
    etag: str
    here: int

    @property
    def cached(self) -> bool:
        return self.here >= self.size


@dataclass(frozen=True)
class DownloadPlan:
    """The files of a download, which will be in ``folder``. Sizes in bytes."""

    repo: str
    revision: str
    commit: str
    folder: Path
    files: tuple[HubFile, ...]
    free: int

    @property
    def total(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def here(self) -> int:
        return sum(file.here for file in self.files)

    @property
    def missing(self) -> int:
        return self.total - self.here


def plan(repo: str, revision: str = "main") -> DownloadPlan:
    """Return the plan for a model on the Hub, without writing to the cache."""
    with quiet(), translated(repo, revision):
        return _plan(repo, revision)


def _plan(repo: str, revision: str) -> DownloadPlan:
    commit, listing = hub_listing(repo, revision)
    # Checked before downloading 20 GB. A gated repository refuses here.
    config = _read_json(repo, commit, "config.json") if "config.json" in listing else {}
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        what = f"its config.json says {kind!r}" if kind else "it has no config.json that says so"
        raise DownloadError(
            f"{repo} is not a Llama 3.2 Vision (mllama) model: {what}", "Name one that transformers loads as mllama."
        )
    weights = _weights(repo, commit, set(listing))
    companions = [name for name in listing if is_companion_file(name)]
    folder = repo_folder(repo)
    files = []
    for name in [*sorted(companions), *sorted(weights)]:
        size, etag = listing[name]
        here = _bytes_here(folder, commit, name, etag, size)
        files.append(HubFile(name, size, etag, here))
    return DownloadPlan(repo, revision, commit, folder / "snapshots" / commit, tuple(files), free_space(hub_cache()))


def weights_size(repo: str) -> int | None:
    """Return the bytes of a repository's weights as the Hub lists them; None if it does not say."""
    try:
        with quiet(), translated(repo, "main"):
            _, listing = hub_listing(repo, "main")
    except MllamaError:
        return None
    return sum(size for name, (size, _) in listing.items() if _WEIGHTS.fullmatch(name)) or None


def is_companion_file(name: str) -> bool:
    """Return whether a model needs this file in addition to its weights."""
    return "/" not in name and any(fnmatch(name, pattern) for pattern in COMPANION_FILES)


def _weights(repo: str, commit: str, names: set[str]) -> set[str]:
    """Return the names of the weight files: those in the index, else model.safetensors."""
    wanted = {SINGLE_FILE}
    if INDEX_FILE in names:
        wanted = set(index_names(_read_json(repo, commit, INDEX_FILE), f"{repo}: {INDEX_FILE}"))
    if not any(name.endswith(".safetensors") for name in names):
        raise DownloadError(
            f"{repo} has no weights in safetensors format", "Look for a repository of the model that has *.safetensors."
        )
    if lost := sorted(wanted - names):
        raise DownloadError(f"{repo} lacks {', '.join(lost[:3])}, so it is incomplete", f"See {hub_url()}/{repo}.")
    return wanted


def _read_json(repo: str, commit: str, name: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_url

    cached = repo_folder(repo) / "snapshots" / commit / name
    data = b"" if is_file(cached) else get_bytes(hf_hub_url(repo, name, revision=commit), MAX_JSON_BYTES)
    try:
        return read_json(cached) if is_file(cached) else parse_object(data, name, error=CheckpointError, hint="")
    except CheckpointError as error:
        raise DownloadError(
            f"{name} of {repo} is not valid JSON",
            f"If it is sound at {hub_url()}/{repo}, run `mllama rm {repo}` and download it again.",
        ) from error


def _bytes_here(folder: Path, commit: str, name: str, etag: str, size: int) -> int:
    blob = folder / "blobs" / etag
    if is_file(folder / "snapshots" / commit / name) or (etag and is_file(blob)):
        return size
    return min(max(abandoned_partials(blob).values(), default=0), size)


def free_space(folder: Path) -> int:
    """Return the free bytes of a folder's file system; the folder need not exist."""
    while not exists(folder) and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
