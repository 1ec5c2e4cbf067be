"""Start an engine in the background, exactly one for a key, however many clients want it at once.

Who holds the lock of a key binds its socket and starts the engine, which inherits both: there is no moment in which
nobody holds the lock of an engine that starts, and clients connect before it runs. Where there are no Unix sockets
(Windows, where nothing can be inherited either), the engine takes both by itself, and ends at once if another has them.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mllama_cli.core.errors import EngineError
from mllama_cli.core.events import Event
from mllama_cli.remote.answerer import RemoteAnswerer, connect
from mllama_cli.remote.client import Address
from mllama_cli.remote.engines import (
    BACKLOG,
    EngineKey,
    lock_file,
    remove_socket,
    socket_file,
    usable_folder,
)
from mllama_cli.system.locks import Lock
from mllama_cli.system.paths import state_folder
from mllama_cli.system.private_sockets import bind_private, has_unix_sockets
from mllama_cli.system.safe_files import open_regular, remove_plain

MODULE = "mllama_cli.serving.background"
ATTEMPTS = 3
LOCKED_SECONDS = 60.0
"""How long a lock may be held without anything listening: while an engine starts or ends."""
MAX_LOGS = 10
MAX_LOG_BYTES = 2**20
KEPT_LOG_BYTES = 2**16
ANOTHER_RUNS = 75
"""Exit code of an engine that found another with its name: EX_TEMPFAIL."""

ENDING_SECONDS = 2.0
"""How long a process may take to end after its socket is closed."""

_POLL_SECONDS = 0.02
_LOG = "engine-{}.log"


@dataclass(frozen=True)
class StartRequest:
    """What an engine is started with: the model under the name that it shows, and how long it stays unused."""

    name: str
    key: EngineKey
    keep_alive: float
    folder: str = ""
    """Of its socket and its lock."""
    socket: int = -1
    """Descriptor of the socket, as that of ``lock``; negative if the engine takes them by itself."""
    lock: int = -1

    def line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> "StartRequest":
        fields = json.loads(text)
        key = fields["key"]
        adapters = tuple((path, state) for path, state in key["adapters"])
        return cls(**{**fields, "key": EngineKey(**{**key, "adapters": adapters})})


def start(
    name: str, key: EngineKey, keep_alive: float, progress: Callable[[Event], None] | None = None
) -> RemoteAnswerer:
    """Return the background engine with a key, started unless it runs, when it has loaded.

    ``progress`` is called with the events of loading. Raise EngineError if it cannot be started, or what keeps it from
    loading. An engine that is killed while it loads is started again, a few times.
    """
    folder = usable_folder()
    file = socket_file(folder, key.name)
    end = time.monotonic() + LOCKED_SECONDS
    started = 0
    process: subprocess.Popen[bytes] | None = None
    while True:
        try:
            return connect(Address.of_file(file), keep_alive=keep_alive, progress=progress)
        except EngineError as error:
            if error.is_absent and process is not None and has_unix_sockets():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(ENDING_SECONDS)  # nobody listens on its socket any more
            _require_alive(process, key)
            if not error.is_absent or isinstance(error.__cause__, PermissionError) or started >= ATTEMPTS:
                raise
        try:
            waits = not has_unix_sockets() and process is not None and process.poll() is None  # for its own engine
            lock = None if waits else Lock.acquire(str(lock_file(folder, key.name)))
            if lock is not None:
                process = _spawn(StartRequest(name, key, keep_alive, str(folder)), lock)
                started += 1
                end = time.monotonic() + LOCKED_SECONDS
                continue
        except OSError as error:
            raise EngineError(
                f"The engine cannot be started: {error.filename or folder}: {error.strerror or error}",
                "Leave out --keep-alive.",
            ) from error
        if time.monotonic() > end:
            raise EngineError(
                f"An engine holds {lock_file(folder, key.name)}, but does not answer",
                "End it with `mllama stop --all`.",
            )
        time.sleep(_POLL_SECONDS)


def log_file(key: EngineKey) -> Path:
    """Return the file that a background engine's messages go to."""
    return state_folder() / _LOG.format(key.name)


def _spawn(request: StartRequest, lock: Lock) -> subprocess.Popen[bytes]:
    """Start the engine of a key whose lock this process holds, and hand the lock over."""
    file = socket_file(Path(request.folder), request.key.name)
    try:
        remove_socket(file)
        if not has_unix_sockets():
            lock.release()
            with _log(request.key) as log:
                return _process(request, log)
        bound = bind_private(file)
        with bound, _log(request.key) as log:
            bound.listen(BACKLOG)
            process = _process(replace(request, socket=bound.fileno(), lock=lock.descriptor), log)
    except BaseException:
        lock.release()
        raise
    lock.hand_over()
    return process


def _process(request: StartRequest, log: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, request.line()],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        pass_fds=[each for each in (request.socket, request.lock) if each >= 0],
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _require_alive(process: "subprocess.Popen[bytes] | None", key: EngineKey) -> None:
    """Raise EngineError if the engine that this process started has ended by itself, which it would do again."""
    code = process.poll() if process is not None else None
    if code is not None and code >= 0 and code != ANOTHER_RUNS:
        raise EngineError(
            f"The engine ended while it was starting (exit code {code})", f"Its messages: {log_file(key)}"
        )


def shorten_log(file: Path) -> None:
    """Drop all but the end of a log that has become too long, while processes append to it."""
    with suppress(OSError), os.fdopen(open_regular(str(file)), "r+b") as log:
        if (size := log.seek(0, os.SEEK_END)) > MAX_LOG_BYTES:
            log.seek(size - KEPT_LOG_BYTES)
            end = log.read()
            log.truncate(0)
            log.seek(0)
            log.write(end)


@contextmanager
def _log(key: EngineKey) -> Iterator[int]:
    """Give the descriptor of an engine's empty log; of the null device where none can be written."""
    file = -1
    with suppress(OSError):
        path = log_file(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_old_logs(path)
        file = open_regular(str(path), os.O_WRONLY | os.O_APPEND, create=True)
        if sys.platform != "win32":
            os.fchmod(file, 0o600)
        os.ftruncate(file, 0)
    if file < 0:
        file = os.open(os.devnull, os.O_WRONLY)
    try:
        yield file
    finally:
        os.close(file)


def _remove_old_logs(keep: Path) -> None:
    """Remove the oldest logs if there are too many, one for each model, device and version."""
    logs = sorted(keep.parent.glob(_LOG.format("*")), key=lambda file: file.stat().st_mtime)
    for file in [each for each in logs if each != keep][: 1 - MAX_LOGS]:
        remove_plain(str(file))
