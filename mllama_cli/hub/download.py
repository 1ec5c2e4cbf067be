"""Download the files that a model needs to run from the Hub into the Hugging Face cache."""

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
from mllama_cli.hub.client import cache_lock, link, quiet
from mllama_cli.hub.errors import translated
from mllama_cli.hub.plan import DownloadPlan, HubFile
from mllama_cli.hub.transfer import Transfer
from mllama_cli.system.files import is_file

_STREAMS = 4
"""Files at once, since a single connection to a CDN rarely saturates the network."""
_POLL_SECONDS = 0.1
_STOP_SECONDS = 0.5
"""Time for a stopped stream to write its last bytes."""


def find_offline(repo: str, revision: str = "main") -> Path:
    """Return the model's folder in the cache without using the network. Raise MllamaError if it is not complete."""
    folder = snapshot(repo, revision)
    get = "Run the same command online (without --offline and HF_HUB_OFFLINE) to get it."
    if folder is None:
        of = "" if revision == "main" else f" in revision {revision!r}"
        raise ModelNotFoundError(f"{repo} is not in the cache{of}, and this is offline", get)
    if not is_whole(folder):
        raise DownloadError(f"{repo} is in the cache only in part, and this is offline", get)
    return folder


def is_whole(folder: Path) -> bool:
    """Return whether a folder has everything that a model needs to run."""
    return is_complete(folder) and is_file(folder / "config.json") and is_file(folder / "tokenizer.json")


def download(plan: DownloadPlan, progress: Callable[[DownloadProgress], None] = lambda event: None) -> Path:
    """Carry out a plan and return the model's folder. Resumes an earlier attempt.

    The revision's ref moves to the new commit only after all files have arrived. Ctrl-C leaves at once and keeps what
    has arrived. ``progress`` is called only in this thread.
    """
    if plan.missing > plan.free:
        raise DownloadError(
            f"The disk of {hub_cache()} has {human_size(plan.free)} free, "
            f"but {plan.repo} needs {human_size(plan.missing)} more",
            "Free some space (`mllama rm MODEL` frees a model's), or set HF_HOME to a larger disk.",
        )
    with quiet(), translated(plan.repo, plan.revision):
        _fetch(plan, progress)
        if plan.revision != plan.commit:
            reference = repo_folder(plan.repo) / "refs" / plan.revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(plan.commit)
    return plan.folder


def _fetch(plan: DownloadPlan, progress: Callable[[DownloadProgress], None]) -> None:
    counter = _Counter(plan.here, plan.total)
    stop = threading.Event()
    waiting: SimpleQueue[HubFile] = SimpleQueue()
    outcomes: SimpleQueue[Exception | None] = SimpleQueue()  # Ctrl-C interrupts its ``get``

    def work() -> None:
        while not stop.is_set():
            try:
                _fetch_one(plan, waiting.get_nowait(), counter, stop)
                outcomes.put(None)
            except Empty:
                return
            except Exception as error:
                outcomes.put(error)

    # Including files whose blob another revision downloaded: they still need their link in this snapshot.
    files = [file for file in plan.files if not is_file(plan.folder / file.name)]
    for file in files:
        waiting.put(file)
    # Daemons, so that Ctrl-C need not wait for a stalled connection.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_STREAMS, len(files)))]
    progress(counter.event)
    try:
        for thread in threads:
            thread.start()
        left = len(files)
        while left:
            with suppress(Empty):
                if (error := outcomes.get(timeout=_POLL_SECONDS)) is not None:
                    raise error
                left -= 1
            progress(counter.event)
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(_STOP_SECONDS)


def _fetch_one(plan: DownloadPlan, file: HubFile, counter: "_Counter", stop: threading.Event) -> None:
    from huggingface_hub import hf_hub_url

    cache = hub_cache()
    folder = repo_folder(plan.repo)
    blob = folder / "blobs" / file.etag
    with cache_lock(cache, folder.name, file.etag):  # a second command waits, then finds the finished file
        if is_file(blob):
            counter.add(file.size - file.here, file.name)
        else:
            url = hf_hub_url(plan.repo, file.name, revision=plan.commit)
            transfer = Transfer(url, blob, file.size, on_bytes=lambda n: counter.add(n, file.name), stop=stop)
            counter.add(transfer.adopt() - file.here, file.name)
            transfer.run()
        link(blob, plan.folder / file.name)


class _Counter:
    """Bytes that have arrived, counted by all streams."""

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
