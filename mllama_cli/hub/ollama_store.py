"""Find models in ollama's folders, which are only read: manifests by name, and the blobs that these name by digest."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllama_cli.core.errors import CheckpointError, ModelNotFoundError
from mllama_cli.core.text import suggest
from mllama_cli.system.files import expanded, is_file, status_of, subfolders
from mllama_cli.system.json_file import parse_object
from mllama_cli.system.text_file import read_file

PREFIX = "ollama:"
"""Before a name that means one of ollama's models."""

LIBRARY_NAMES = {
    "llama3.2-vision": "11b",
    "llama3.2-vision:latest": "11b",
    "llama3.2-vision:11b": "11b",
    "llama3.2-vision:90b": "90b",
}
"""Our alias of each model that ollama's library has."""

SERVICE_STORE = Path("/usr/share/ollama/.ollama/models")
"""Where the service keeps them on Linux."""

MAX_MANIFEST_BYTES = 2**20
MAX_MANIFESTS = 2000
MAX_LICENSE_BYTES = 2**20
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_NAME = re.compile(rf"(?:(?:({_PART}(?::\d{{1,5}})?)/)?({_PART})/)?({_PART})(?::({_PART}))?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_KIND = "application/vnd.ollama.image."
_PULL = "Run `ollama pull` again."


@dataclass(frozen=True)
class OllamaModel:
    """A model of ollama's by its short ``name``: its GGUF files, the licence's, and its sampling defaults."""

    name: str
    files: tuple[Path, ...]
    size: int
    licenses: tuple[Path, ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def local_name(self) -> str:
        """Return the name that it gets among our models: without owner, and with a hyphen for the colon."""
        return self.name.rpartition("/")[2].replace(":", "-")

    def license(self) -> bytes:
        """Return the text of its licence."""
        return b"\n".join(read_file(file, limit=MAX_LICENSE_BYTES, error=CheckpointError) for file in self.licenses)


def stores() -> list[Path]:
    """Return the folders where ollama may keep models: OLLAMA_MODELS, else the user's and the service's."""
    if given := os.environ.get("OLLAMA_MODELS"):
        return [expanded(given)]
    return [expanded("~/.ollama/models"), SERVICE_STORE]


def ollama_model(name: str) -> OllamaModel:
    """Return one of ollama's models, by the name that ollama gives it.

    Raises ModelNotFoundError if there is none, CheckpointError if it is incomplete or damaged.
    """
    found = _NAME.fullmatch(name.removeprefix(PREFIX))
    if found is not None:
        host, namespace, model, tag = found.groups()
        path = Path(host or _HOST) / (namespace or _NAMESPACE) / model / (tag or _TAG)
        for store in stores():
            if is_file(store / "manifests" / path):
                return _read(store, path)
    names = [each.name for each in importable()]
    raise ModelNotFoundError(
        f"ollama has no model called {name.removeprefix(PREFIX)!r} on this machine",
        suggest(name.removeprefix(PREFIX), names, count=3)
        or (f"It has {', '.join(names)}." if names else f"Looked in {' and '.join(map(str, stores()))}."),
    )


def suggest_alias(name: str) -> str:
    """Return "Did you mean X? " with our alias of a model in ollama's library; an empty text for other names."""
    alias = LIBRARY_NAMES.get(name.removeprefix(PREFIX).casefold())
    return f"Did you mean {alias}? " if alias else ""


def importable() -> list[OllamaModel]:
    """Return ollama's Llama 3.2 Vision models on this machine that are complete, by name."""
    found: dict[str, OllamaModel] = {}
    for store in stores():
        for number, path in enumerate(_manifests(store / "manifests")):
            if number >= MAX_MANIFESTS:
                break
            try:
                if _is_mllama(store, path):
                    found.setdefault(_short_name(path), _read(store, path))
            except CheckpointError:
                continue
    return sorted(found.values(), key=lambda model: model.name)


def importable_as(name: str) -> OllamaModel | None:
    """Return the model that ollama calls ``name`` if it is there and could be imported."""
    try:
        return ollama_model(name)
    except (ModelNotFoundError, CheckpointError):
        return None


def _manifests(folder: Path) -> Iterator[Path]:
    """Yield host/namespace/model/tag of every manifest."""
    try:
        for host in subfolders(folder):
            for namespace in subfolders(host):
                for model in subfolders(namespace):
                    for tag in sorted(model.iterdir()):
                        yield tag.relative_to(folder)
    except (CheckpointError, OSError):
        return


def _read(store: Path, path: Path) -> OllamaModel:
    """Return the model of a manifest. Raise CheckpointError if it is damaged, or a file is missing or incomplete."""
    where = store / "manifests" / path
    manifest = _object(where)
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise CheckpointError(f"{where} names no files", _PULL)
    blobs: dict[str, list[Path]] = {}
    for layer in layers:
        kind = str(layer.get("mediaType")).removeprefix(_KIND)
        if kind in ("model", "projector", "params", "license", "adapter"):
            blobs.setdefault(kind, []).append(_blob(store, layer, where))
    name = _short_name(path)
    if "model" not in blobs:
        raise CheckpointError(f"ollama's {name} has no weights on this machine", _PULL)
    if "adapter" in blobs:
        raise CheckpointError(
            f"ollama's {name} is a model with an adapter, which is not read", "Import its base model."
        )
    files = (*blobs["model"], *blobs.get("projector", ()))
    sampling = _object(blobs["params"][0]) if "params" in blobs else {}
    return OllamaModel(
        name, files, sum(file.stat().st_size for file in files), tuple(blobs.get("license", ())), sampling
    )


def _is_mllama(store: Path, path: Path) -> bool:
    """Return whether a manifest's config says that it is of a Llama 3.2 Vision model."""
    where = store / "manifests" / path
    config = _object(where).get("config")
    return isinstance(config, dict) and _object(_blob(store, config, where)).get("model_family") == "mllama"


def _blob(store: Path, layer: dict[str, Any], where: Path) -> Path:
    """Return the file that a manifest names by its digest, of the size that it says."""
    digest, size = layer.get("digest"), layer.get("size")
    if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:  # becomes a path
        raise CheckpointError(f"{where} has the digest {str(digest)[:80]!r}", _PULL)
    blob = store / "blobs" / digest.replace(":", "-")
    status = status_of(blob)
    if status is None:
        raise CheckpointError(f"{blob} is missing or may not be read", f"{_PULL} Or check who owns it.")
    if status.st_size != size:
        raise CheckpointError(f"{blob} has {status.st_size} bytes, not {str(size)[:20]}: it is incomplete", _PULL)
    return blob


def _object(file: Path) -> dict[str, Any]:
    data = read_file(file, limit=MAX_MANIFEST_BYTES, error=CheckpointError, pipes=False)
    return parse_object(data, str(file), error=CheckpointError, hint=_PULL)


def _short_name(path: Path) -> str:
    """Return what ollama calls a manifest's model: without what is the default.

    >>> _short_name(Path("registry.ollama.ai/library/llama3.2-vision/90b")), _short_name(Path("hf.co/a/b/latest"))
    ('llama3.2-vision:90b', 'hf.co/a/b')
    """
    host, namespace, model, tag = path.parts
    owner = "" if (host, namespace) == (_HOST, _NAMESPACE) else f"{namespace}/"
    return ("" if host == _HOST else f"{host}/") + owner + model + ("" if tag == _TAG else f":{tag}")
