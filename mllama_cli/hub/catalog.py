"""List the models on this machine and resolve model names. Imports neither torch nor huggingface_hub."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from mllama_cli.checkpoint.files import is_complete, is_gguf, other_layout
from mllama_cli.core.errors import CheckpointError, ModelNotFoundError, UsageError
from mllama_cli.core.text import suggest
from mllama_cli.hub.cache import current_snapshot, repos, snapshot
from mllama_cli.hub.kinds import is_mllama, kind
from mllama_cli.hub.ollama_store import PREFIX, importable_as, suggest_alias
from mllama_cli.system.files import expanded, files_below, is_file, is_folder, subfolders
from mllama_cli.system.paths import built_in_model, data_folder
from mllama_cli.system.text_file import read_text

MAX_NAME_BYTES = 4096
MODEL_ALIASES = {
    "11b": "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "11b-base": "meta-llama/Llama-3.2-11B-Vision",
    "11b-open": "unsloth/Llama-3.2-11B-Vision-Instruct",
    "11b-fp8": "RedHatAI/Llama-3.2-11B-Vision-Instruct-FP8-dynamic",
    "11b-nf4": "unsloth/Llama-3.2-11B-Vision-Instruct-unsloth-bnb-4bit",
    "90b": "meta-llama/Llama-3.2-90B-Vision-Instruct",
    "90b-base": "meta-llama/Llama-3.2-90B-Vision",
    "90b-open": "unsloth/Llama-3.2-90B-Vision-Instruct",
    "90b-fp8": "RedHatAI/Llama-3.2-90B-Vision-Instruct-FP8-dynamic",
    "90b-nf4": "unsloth/Llama-3.2-90B-Vision-Instruct-bnb-4bit",
}
"""Meta's own; with -open the same weights without a gate; in 8 bits, and in 4."""
BUILT_IN = "sketch"
"""The name of the built-in model."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_ADDRESS = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://|hf:)"
    r"(?!(?:datasets|spaces|docs|collections|papers|models|api|blog)/)(?:models/)?"
    r"(?P<repo>[\w.-]+/[\w.-]+?)(?:\.git)?"
    r"(?:/(?:tree|blob|resolve|raw|commit|commits)/(?P<revision>[^/?#]+)[^?#]*|/(?:discussions|edit|settings)\b[^?#]*)?"
    r"/?(?:[?#].*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ModelEntry:
    """A model on this machine: ``size`` in bytes, ``kind`` as ``kind()`` returns it.

    ``revision`` is the commit of a downloaded model, empty for a local one.
    """

    name: str
    path: Path
    size: int
    kind: str
    modified: datetime
    where: Literal["local", "hub cache", "package"]
    complete: bool = True
    revision: str = ""


def models_folder() -> Path:
    """Return the folder of models that we write: ``models`` in the user's data folder, or in MLLAMA_HOME."""
    return data_folder() / "models"


def hub_id(name: str) -> str | None:
    """Return the Hub id of an alias or a web address, or ``name`` itself if it has the form of one."""
    return hub_address(name)[0]


def hub_address(name: str) -> tuple[str | None, str | None]:
    """Return the Hub id of ``name``, and the revision if it is a web address that names one.

    >>> hub_address("https://huggingface.co/owner/name/tree/v2"), hub_address("hf.co/owner/name")
    (('owner/name', 'v2'), ('owner/name', None))
    """
    if (match := _HUB_ADDRESS.fullmatch(name.strip())) is not None:
        revision = match["revision"]
        return match["repo"], unquote(revision) if revision else None
    return MODEL_ALIASES.get(name.lower()) or (name if _HUB_ID.fullmatch(name) else None), None


def resolve(name: str) -> Path:
    """Return the folder of a model: an existing folder, a local model, the built-in one, an alias or a cached Hub id.

    Raises CheckpointError for a folder that is not a checkpoint, ModelNotFoundError if nothing has that name.
    """
    folder = expanded(name)
    if name and is_folder(folder):
        if is_file(folder / "config.json"):
            return folder
        if is_built_in(name):
            return built_in_model()
        what, hint = other_layout(folder) or (
            "is a folder without config.json, so it is not a model",
            "Check the path.",
        )
        raise CheckpointError(f"{name} {what}", hint)
    if (local := local_model(name)) is not None and is_file(local / "config.json"):
        return local
    if is_built_in(name):
        return built_in_model()
    repo, revision = hub_address(name)
    if repo is not None:
        found = current_snapshot(repo) if revision is None else snapshot(repo, revision)
        if found is not None:
            return found
    if is_file(folder):
        what, hint = "a file", "Name the folder that holds it."
        if is_gguf(folder):
            what, hint = "a GGUF file", f"`mllama import {shlex.quote(name)}` makes a model of it."
        raise ModelNotFoundError(f"{name} is {what}, and a model is a folder", hint)
    raise _unknown(name, repo)


def local_model(name: str) -> Path | None:
    """Return the folder of a local model, damaged or not; None if there is none of that name."""
    folder = models_folder() / name
    return folder if name not in ("", ".", "..") and "/" not in name and is_folder(folder) else None


def is_built_in(name: str) -> bool:
    """Return whether ``name`` means the built-in model."""
    return name.lower() in (BUILT_IN, f"mllama-{BUILT_IN}")


def default_model() -> ModelEntry:
    """Return the only downloaded or local model, else the built-in one. Raise ModelNotFoundError for several."""
    entries = runnable()
    if len(entries) <= 1:
        return entries[0] if entries else built_in()
    raise ModelNotFoundError(
        f"There are several models on this machine: {', '.join(entry.name for entry in entries)}",
        "Name one with -m, or choose a default: `mllama config set model NAME`.",
    )


def runnable() -> list[ModelEntry]:
    """Return the complete models on this machine, without the built-in one."""
    return [entry for entry in installed() if entry.complete]


def short_name(name: str) -> str:
    """Return the alias of a Hub id if it has one: what one types.

    >>> short_name("meta-llama/Llama-3.2-11B-Vision-Instruct"), short_name("owner/name")
    ('11b', 'owner/name')
    """
    return next((alias for alias, id_ in MODEL_ALIASES.items() if id_ == name), name)


def remember_used(name: str) -> None:
    """Keep the name of a model for ``last_used``.

    Paths and the built-in model are not remembered; neither is anything if the file cannot be written.
    """
    if is_built_in(name) or (local_model(name) is None and hub_id(name) is None) or is_folder(expanded(name)):
        return
    file = _last_model_file()
    try:
        if _last_model() != name:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(name, encoding="utf-8")
    except (OSError, ValueError):
        pass


def last_used() -> ModelEntry | None:
    """Return the model that was remembered last, if it is still complete on this machine."""
    if (name := _last_model()) is None:
        return None
    if local_model(name) is None:
        name = hub_id(name) or name
    return next((entry for entry in runnable() if entry.name == name), None)


def _last_model() -> str | None:
    try:
        return read_text(_last_model_file(), limit=MAX_NAME_BYTES, pipes=False)
    except UsageError:
        return None


def _last_model_file() -> Path:
    return data_folder() / "last-model"


def installed() -> list[ModelEntry]:
    """Return all models on this machine except the built-in one, local ones first, by name."""
    local = [_entry(folder.name, folder, "local") for folder in subfolders(models_folder()) if is_mllama(folder)]
    hub = [
        _entry(repo, folder, "hub cache", folder.name)
        for repo in repos()
        if (folder := current_snapshot(repo)) is not None and is_mllama(folder)
    ]
    return [*local, *hub]


def built_in() -> ModelEntry:
    """Return the built-in model."""
    return _entry(BUILT_IN, built_in_model(), "package")


def _entry(name: str, folder: Path, where: Literal["local", "hub cache", "package"], revision: str = "") -> ModelEntry:
    files = list(files_below(folder))
    return ModelEntry(
        name=name,
        path=folder,
        size=sum(file.stat().st_size for file in files),
        kind=kind(folder),
        modified=datetime.fromtimestamp(max((file.stat().st_mtime for file in files), default=0)),
        where=where,
        complete=is_complete(folder),
        revision=revision,
    )


def nearest(name: str, here: Iterable[str], elsewhere: Iterable[str] = ()) -> str:
    """Return "Did you mean X? " for a model called ``name``: the models that differ from it only by case or owner.

    If there are none, those that are spelt almost the same; none for a name that is right. Models ``elsewhere`` are to
    be downloaded, so one of another owner is not suggested for a full id.
    """
    installed_names = list(here)
    others = list(dict.fromkeys([*installed_names, *elsewhere]))
    if name in others:
        return ""
    same = [
        each
        for each in others
        if _without_owner(each) == _without_owner(name)
        and ("/" not in name or each in installed_names or each.casefold() == name.casefold())
    ]
    if same:
        return f"Did you mean {' or '.join(same[:3])}? "
    # Long ids resemble one another: in one, accept only a typo of a letter or two.
    return suggest(name, others, cutoff=0.9) if "/" in name else suggest(name, others, count=3)


def _without_owner(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()


def _unknown(name: str, repo: str | None) -> ModelNotFoundError:
    if (found := importable_as(name)) is not None:
        return ModelNotFoundError(
            f"{name} is a model of ollama's, which has to be imported first",
            f"Run `mllama import {PREFIX}{found.name}`, then `mllama chat -m {found.local_name}`.",
        )
    here = [*(entry.name for entry in installed()), BUILT_IN]
    if repo is not None and not name.startswith((".", "/", "~")):
        what = f"{name} ({repo})" if repo != name else name
        meant = nearest(name, here, MODEL_ALIASES.values()) if repo == name else ""
        revision = hub_address(name)[1]
        return ModelNotFoundError(
            f"Model {what} is not on this machine{f' in revision {revision}' if revision else ''}",
            f"{meant}{'Else get' if meant else 'Get'} it with `mllama download {name}`: nothing is downloaded unasked.",
        )
    known = [*here, *MODEL_ALIASES]
    near = suggest_alias(name) or nearest(name, here, [*MODEL_ALIASES, *MODEL_ALIASES.values()])
    hint = near or f"Known names: {', '.join(known)}. "
    return ModelNotFoundError(
        f"There is no model or folder called {name!r}", f"{hint}`mllama list` shows what is here."
    )
