"""Gets a model from the hub into the ordinary Hugging Face cache: what is needed to run it, and nothing else."""

import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from mllama_cli import __version__
from mllama_cli.checkpoint.catalog import hub_cache, is_complete, repo_folder
from mllama_cli.checkpoint.hub_errors import hub_url, translate
from mllama_cli.checkpoint.transfer import SHA256, Transfer
from mllama_cli.core.errors import DownloadError, ModelNotFoundError
from mllama_cli.core.events import DownloadProgress

INDEX = "model.safetensors.index.json"
BESIDE_WEIGHTS = (
    "config.json", INDEX, "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer*", "special_tokens_map.json", "chat_template*", "LICENSE*", "USE_POLICY*", "README.md",
)  # fmt: skip
"""What a model needs at the top of its folder beside its weights. Never original/, *.pth, *.bin or *.gguf."""

_STREAMS = 4  # files at once: one connection to a content network is slower than most lines
_ABREAST = 0.1  # seconds between two looks at how far the files are
_FAREWELL = 0.5  # seconds that a stopped stream has to put its last bytes down


@dataclass(frozen=True)
class HubFile:
    """A file to have. ``etag`` names its bytes in the cache; ``here`` counts those of its bytes that are there."""

    name: str
    size: int
    etag: str
    here: int

    @property
    def cached(self) -> bool:
        return self.here >= self.size


@dataclass(frozen=True)
class Plan:
    """What a download would do. ``folder`` is where the model will be; sizes in bytes."""

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


def offline_asked() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def find_offline(repo: str, revision: str = "main") -> Path:
    """The model's folder in the cache, without a look at the network. Raises where it is not whole."""
    folder = _snapshot(repo, revision)
    get = "Run the same command online (without --offline and HF_HUB_OFFLINE) to get it."
    if folder is None:
        of = "" if revision == "main" else f" in revision {revision!r}"
        raise ModelNotFoundError(f"{repo} is not in the cache{of}, and this is offline", get)
    if not is_whole(folder):
        raise DownloadError(f"{repo} is in the cache only in part, and this is offline", get)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a folder has all that a model needs to run."""
    return is_complete(folder) and (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()


def plan(repo: str, revision: str = "main") -> Plan:
    """Ask the hub what belongs to the model, and look what of it is here. Writes nothing into the cache."""
    with _quiet(), _translated(repo, revision):
        return _plan(repo, revision)


def download(todo: Plan, progress: Callable[[DownloadProgress], None] = lambda event: None) -> Path:
    """Carry a plan out and return the model's folder. Goes on where an earlier try stopped.

    The revision's name points to the new files only when all are there: until then the older ones stay in use.
    Ctrl-C leaves at once and keeps what has arrived. ``progress`` is called in this thread alone.
    """
    if todo.missing > todo.free:
        raise DownloadError(
            f"The disk of {hub_cache()} has {_gb(todo.free)} free, but {todo.repo} needs {_gb(todo.missing)} more",
            "Free some space (`mllama rm MODEL` frees a model's), or set HF_HOME to a larger disk.",
        )
    with _quiet(), _translated(todo.repo, todo.revision):
        _fetch(todo, progress)
        if todo.revision != todo.commit:
            reference = repo_folder(todo.repo) / "refs" / todo.revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(todo.commit)
    return todo.folder


def _plan(repo: str, revision: str) -> Plan:
    from huggingface_hub import HfApi

    info = HfApi(library_name="mllama", library_version=__version__).model_info(
        repo, revision=revision, files_metadata=True
    )
    listing = {s.rfilename: s for s in info.siblings or []}
    commit = info.sha
    if not commit:
        raise DownloadError(f"{hub_url()} does not say which commit {revision!r} is", "Check HF_ENDPOINT.")
    # A look before 20 GB are fetched; this is also where a gated repository says no.
    config = _read_json(repo, commit, "config.json") if "config.json" in listing else {}
    kind = config.get("model_type")
    if kind not in ("mllama", "mllama_text_model"):
        what = f"its config.json says {kind!r}" if kind else "it has no config.json that says so"
        raise DownloadError(
            f"{repo} is no Llama 3.2 Vision (mllama) model: {what}", "Name one that transformers loads as mllama."
        )
    weights = _weights(repo, commit, set(listing))
    beside = [name for name in listing if any(fnmatch(name, p) for p in BESIDE_WEIGHTS) and "/" not in name]
    folder = repo_folder(repo)
    files = []
    for name in [*sorted(beside), *sorted(weights)]:
        sibling = listing[name]
        etag = (sibling.lfs.sha256 if sibling.lfs else None) or sibling.blob_id or ""
        size = (sibling.lfs.size if sibling.lfs else None) or sibling.size or 0
        here = _bytes_here(folder, commit, name, etag, size)
        files.append(HubFile(name, size, etag, here))
    return Plan(repo, revision, commit, folder / "snapshots" / commit, tuple(files), free_space(hub_cache()))


def _weights(repo: str, commit: str, names: set[str]) -> set[str]:
    """The weight files that a reader opens: those that the index names, else model.safetensors."""
    if INDEX in names:
        shards = _read_json(repo, commit, INDEX).get("weight_map")
        wanted = set(shards.values()) if isinstance(shards, dict) else set()
    else:
        wanted = {"model.safetensors"}
    if not wanted or not any(name.endswith(".safetensors") for name in names):
        raise DownloadError(
            f"{repo} has no weights in safetensors format", "Look for a repository of the model that has *.safetensors."
        )
    if lost := sorted(wanted - names):
        raise DownloadError(f"{repo} lacks {', '.join(lost[:3])}, so it is not whole", f"See {hub_url()}/{repo}.")
    return wanted


def _read_json(repo: str, commit: str, name: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download

    cached = repo_folder(repo) / "snapshots" / commit / name
    with tempfile.TemporaryDirectory() as scratch:
        path = (
            cached
            if cached.is_file()
            else Path(hf_hub_download(repo, name, revision=commit, cache_dir=scratch, tqdm_class=_NoBar))
        )
        data = json.loads(path.read_text(encoding="utf-8"))
    return data if isinstance(data, dict) else {}


def _bytes_here(folder: Path, commit: str, name: str, etag: str, size: int) -> int:
    blob = folder / "blobs" / etag
    if (folder / "snapshots" / commit / name).is_file() or (etag and blob.is_file()):
        return size
    partial = blob.with_name(etag + ".incomplete")
    return min(partial.stat().st_size, size) if etag and partial.is_file() else 0


def free_space(folder: Path) -> int:
    """Free bytes of the file system where a folder is or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _fetch(todo: Plan, progress: Callable[[DownloadProgress], None]) -> None:
    counter = _Counter(todo.here, todo.total)
    stop = threading.Event()
    waiting: Queue[HubFile] = Queue()
    outcomes: Queue[Exception | None] = Queue()

    def work() -> None:
        while not stop.is_set():
            try:
                _fetch_one(todo, waiting.get_nowait(), counter, stop)
                outcomes.put(None)
            except Empty:
                return
            except Exception as error:
                outcomes.put(error)

    # Linked ones too: bytes that another revision brought still need their name in this one.
    files = [file for file in todo.files if not (todo.folder / file.name).is_file()]
    for file in files:
        waiting.put(file)
    # Daemons: Ctrl-C on a line that stands still must not wait for it.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_STREAMS, len(files)))]
    progress(counter.event)
    try:
        for thread in threads:
            thread.start()
        left = len(files)
        while left:
            with suppress(Empty):
                if (error := outcomes.get(timeout=_ABREAST)) is not None:
                    raise error
                left -= 1
            progress(counter.event)
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(_FAREWELL)


def _fetch_one(todo: Plan, file: HubFile, counter: "_Counter", stop: threading.Event) -> None:
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    cache = hub_cache()
    folder = repo_folder(todo.repo)
    # All that is not text in git: weights, and the tokenizer's tables.
    streamed = bool(SHA256.fullmatch(file.etag)) or (file.name.endswith(".safetensors") and bool(file.etag))
    if streamed and not file.cached:
        lock = cache / ".locks" / folder.name / f"{file.etag}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # two commands at once: the second waits, then finds the file there
            blob = folder / "blobs" / file.etag
            if not blob.is_file():
                url = hf_hub_url(todo.repo, file.name, revision=todo.commit)
                Transfer(url, blob, file.size, grew=lambda n: counter.add(n, file.name), stop=stop).run()
    # Makes the name in the snapshot, in whichever way this file system allows.
    hf_hub_download(todo.repo, file.name, revision=todo.commit, cache_dir=cache, tqdm_class=_NoBar)
    if not streamed:
        counter.add(file.size - file.here, file.name)


class _Counter:
    """How much is here, written to by every stream."""

    def __init__(self, done: int, total: int) -> None:
        self._lock = threading.Lock()
        self._done, self._total, self._file = done, total, ""

    def add(self, count: int, file: str) -> None:
        with self._lock:
            self._done += count
            self._file = file

    @property
    def event(self) -> DownloadProgress:
        with self._lock:
            return DownloadProgress(min(self._done, self._total), self._total, self._file)


class _NoBar:
    """Stands in for huggingface_hub's progress bars: the bytes are counted elsewhere."""

    n = 0
    total: int | None = None

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def _snapshot(repo: str, revision: str) -> Path | None:
    folder = repo_folder(repo)
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if (snapshot / "config.json").is_file() else None


@contextmanager
def _quiet() -> Iterator[None]:
    """No word from huggingface_hub itself: what matters reaches the user as an error of ours."""
    import huggingface_hub  # noqa: F401  (sets its logger's level when first imported)

    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _translated(repo: str, revision: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        ours = translate(error, repo, revision)
        if ours is None:
            raise
        raise ours from error


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
