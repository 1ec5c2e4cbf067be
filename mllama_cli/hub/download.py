"""Gets a model from the hub into the ordinary Hugging Face cache: what is needed to run it, and nothing else."""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from mllama_cli.checkpoint.files import is_complete
from mllama_cli.core.errors import DownloadError, ModelNotFoundError
from mllama_cli.core.events import DownloadProgress
from mllama_cli.core.text import human_size
from mllama_cli.hub.cache import hub_cache, repo_folder, snapshot
from mllama_cli.hub.errors import quiet, translated
from mllama_cli.hub.plan import HubFile, NoBar, Plan
from mllama_cli.hub.transfer import SHA256, Transfer

_STREAMS = 4  # files at once: one connection to a content network is slower than most lines
_ABREAST = 0.1  # seconds between two looks at how far the files are
_FAREWELL = 0.5  # seconds that a stopped stream has to put its last bytes down


def offline_asked() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def find_offline(repo: str, revision: str = "main") -> Path:
    """The model's folder in the cache, without a look at the network. Raises where it is not whole."""
    folder = snapshot(repo, revision)
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


def download(todo: Plan, progress: Callable[[DownloadProgress], None] = lambda event: None) -> Path:
    """Carry a plan out and return the model's folder. Goes on where an earlier try stopped.

    The revision's name points to the new files only when all are there: until then the older ones stay in use.
    Ctrl-C leaves at once and keeps what has arrived. ``progress`` is called in this thread alone.
    """
    if todo.missing > todo.free:
        raise DownloadError(
            f"The disk of {hub_cache()} has {human_size(todo.free)} free, "
            f"but {todo.repo} needs {human_size(todo.missing)} more",
            "Free some space (`mllama rm MODEL` frees a model's), or set HF_HOME to a larger disk.",
        )
    with quiet(), translated(todo.repo, todo.revision):
        _fetch(todo, progress)
        if todo.revision != todo.commit:
            reference = repo_folder(todo.repo) / "refs" / todo.revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(todo.commit)
    return todo.folder


def _fetch(todo: Plan, progress: Callable[[DownloadProgress], None]) -> None:
    counter = _Counter(todo.here, todo.total)
    stop = threading.Event()
    waiting: SimpleQueue[HubFile] = SimpleQueue()
    outcomes: SimpleQueue[Exception | None] = SimpleQueue()  # its waiting can be interrupted

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
    hf_hub_download(todo.repo, file.name, revision=todo.commit, cache_dir=cache, tqdm_class=NoBar)
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
