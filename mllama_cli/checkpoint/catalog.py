"""Which models are on this machine, and which folder a name means. Imports neither torch nor huggingface_hub."""

import difflib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from mllama_cli.core.errors import CheckpointError, ModelNotFoundError

ALIASES = {
    "11b": "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "11b-base": "meta-llama/Llama-3.2-11B-Vision",
    "90b": "meta-llama/Llama-3.2-90B-Vision-Instruct",
    "90b-base": "meta-llama/Llama-3.2-90B-Vision",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelEntry:
    """A model on this machine. ``size`` in bytes; ``kind`` words: instruct or base, text-only, quantized."""

    name: str
    path: Path
    size: int
    kind: str
    modified: datetime
    where: Literal["local", "hub cache"]
    complete: bool = True


def models_folder() -> Path:
    """Where models that we write live: ``models`` under the user's data folder, or under MLLAMA_HOME."""
    home = os.environ.get("MLLAMA_HOME")
    if home:
        return Path(home).expanduser() / "models"
    import platformdirs

    return Path(platformdirs.user_data_dir("mllama", appauthor=False)) / "models"


def hub_cache() -> Path:
    """The Hugging Face cache, found as huggingface_hub finds it."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def hub_id(name: str) -> str | None:
    """The hub id that an alias stands for, or ``name`` itself where it has the form of one."""
    return ALIASES.get(name.lower()) or (name if _HUB_ID.fullmatch(name) else None)


def resolve(name: str) -> Path:
    """The folder of a model: an existing folder, else a local model, else an alias or hub id in the cache.

    Raises CheckpointError for a folder that is no checkpoint, ModelNotFoundError where nothing has that name.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{name} is a folder without config.json, so it is no model", "Check the path.")
        return folder
    local = models_folder() / name
    if name and "/" not in name and (local / "config.json").is_file():
        return local
    repo = hub_id(name)
    if repo is not None and (snapshot := _snapshot(repo)) is not None:
        return snapshot
    raise _unknown(name, repo)


def default_model() -> Path:
    """The only model on this machine. ModelNotFoundError where there is none or more than one."""
    entries = [entry for entry in installed() if entry.complete]
    if len(entries) == 1:
        return entries[0].path
    if not entries:
        raise ModelNotFoundError(
            "There is no model on this machine", "Get one with `mllama download 11b`, or name a folder with -m."
        )
    names = ", ".join(entry.name for entry in entries)
    raise ModelNotFoundError(
        f"There are several models on this machine: {names}", "Name one with -m, or set MLLAMA_MODEL."
    )


def installed() -> list[ModelEntry]:
    """All models on this machine, local ones first, by name."""
    local = [_entry(folder.name, folder, "local") for folder in _subfolders(models_folder()) if _is_mllama(folder)]
    hub = []
    for folder in _subfolders(hub_cache()):
        if folder.name.startswith("models--"):
            repo = folder.name.removeprefix("models--").replace("--", "/")
            snapshot = _snapshot(repo)
            if snapshot is not None and _is_mllama(snapshot):
                hub.append(_entry(repo, snapshot, "hub cache"))
    return [*local, *hub]


def repo_folder(repo: str) -> Path:
    """Where the Hugging Face cache keeps a repository."""
    return hub_cache() / ("models--" + repo.replace("/", "--"))


def _snapshot(repo: str) -> Path | None:
    """The snapshot that ``main`` points to, else the newest one; None where the cache has none with a config.json."""
    folder = repo_folder(repo)
    reference = folder / "refs" / "main"
    if reference.is_file():
        snapshot = folder / "snapshots" / reference.read_text().strip()
        if (snapshot / "config.json").is_file():
            return snapshot
    snapshots = [s for s in _subfolders(folder / "snapshots") if (s / "config.json").is_file()]
    return max(snapshots, key=lambda s: s.stat().st_mtime, default=None)


def _entry(name: str, folder: Path, where: Literal["local", "hub cache"]) -> ModelEntry:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return ModelEntry(
        name=name,
        path=folder,
        size=sum(file.stat().st_size for file in files),
        kind=kind(folder),
        modified=datetime.fromtimestamp(max((file.stat().st_mtime for file in files), default=0)),
        where=where,
        complete=is_complete(folder),
    )


def kind(folder: Path) -> str:
    """instruct or base (has it a chat template?), and text-only and quantized where that is so."""
    config = _config(folder)
    words = ["instruct" if _has_template(folder) else "base"]
    if config.get("model_type") == "mllama_text_model":
        words.append("text-only")
    if config.get("quantization_config"):
        words.append("quantized")
    return ", ".join(words)


def is_complete(folder: Path) -> bool:
    """Whether every weight file that the index names is there."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all((folder / file).is_file() for file in files)


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _is_mllama(folder: Path) -> bool:
    return _config(folder).get("model_type") in ("mllama", "mllama_text_model")


def _subfolders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted((entry for entry in folder.iterdir() if entry.is_dir()), key=lambda entry: entry.name.lower())


def _unknown(name: str, repo: str | None) -> ModelNotFoundError:
    if repo is not None and not name.startswith((".", "/", "~")):
        what = f"{name} ({repo})" if repo != name else name
        return ModelNotFoundError(
            f"Model {what} is not on this machine", f"Get it with `mllama download {name}`: nothing is fetched unasked."
        )
    known = [*(entry.name for entry in installed()), *ALIASES]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known names: {', '.join(known)}."
    return ModelNotFoundError(
        f"There is no model or folder called {name!r}", f"{hint} `mllama list` shows what is here."
    )
