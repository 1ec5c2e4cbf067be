"""The process of an engine that commands have started: `python -m mllama_cli.serving.background REQUEST`.

Its socket and its lock come from the process that started it, where they can be inherited. It ends when nobody has
used it for a while.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette

from mllama_cli.core.events import Event
from mllama_cli.engine.parallel.crew import Crew, begin
from mllama_cli.remote.engines import EngineKey, Registration, lock_file
from mllama_cli.remote.start import ANOTHER_RUNS, StartRequest, log_file, shorten_log
from mllama_cli.serving.guard import KeyGuard
from mllama_cli.serving.idle import IdleEnd
from mllama_cli.serving.run import serve
from mllama_cli.serving.settings import ServerSettings
from mllama_cli.system.collection import paused_collection
from mllama_cli.system.cuda_context import create_context
from mllama_cli.system.locks import Lock

GRACE_SECONDS = 30.0
LOG_SECONDS = 10.0
TAKE_SECONDS = 1.0
"""How long to try for the lock, which commands that look for engines hold for a moment."""
MAX_BODY = 512 * 2**20
"""Of a question with its images, which comes from this user."""
MAX_CONTEXT = 2**31
"""No limit but the model's own."""


def main(text: str) -> None:
    """Serve until a signal, or until nobody has used the engine for ``keep_alive`` seconds."""
    request = StartRequest.read(text)
    key = request.key
    create_context(key.device)
    os.umask(0o077)
    os.chdir(request.folder)  # the command's own folder may be removed, or on a disk that is taken out
    crew = begin(key.device)
    with paused_collection():
        from mllama_cli.serving.opening import Opening  # imports torch

    registration = _inherited(request) if request.socket >= 0 else _taken(request)
    idle = IdleEnd(request.keep_alive, _end)

    def open_app(report: Callable[[Event], None]) -> Starlette:
        return _open(request, registration, idle, crew, report)

    opening = Opening(request.name, open_app, idle, _end, GRACE_SECONDS)
    try:
        settings = ServerSettings(private_server=registration.server, private_key=registration.token)
        serve(KeyGuard(opening, settings), opening, [registration.bound], ready=lambda: _watch_log(key))
    finally:
        registration.close()
    os._exit(0)  # a thread that still opens the model would keep the process


def _inherited(request: StartRequest) -> Registration:
    """Return the registration with the lock and the socket of the process that started this one."""
    folder, name = Path(request.folder), request.key.name
    lock = Lock.inherited(str(lock_file(folder, name)), request.lock)
    bound = socket.socket(fileno=request.socket)
    bound.set_inheritable(False)
    return Registration(folder, name, lock, bound)


def _taken(request: StartRequest) -> Registration:
    """Return a registration of this process' own. End the process if another engine has the lock."""
    folder, name = Path(request.folder), request.key.name
    end = time.monotonic() + TAKE_SECONDS
    while (lock := Lock.acquire(str(lock_file(folder, name)))) is None:
        if time.monotonic() > end:
            sys.exit(ANOTHER_RUNS)
        time.sleep(0.02)
    return Registration.bind(folder, name, lock, port=True)


def _open(
    request: StartRequest,
    registration: Registration,
    idle: IdleEnd,
    crew: Crew | None,
    report: Callable[[Event], None],
) -> Starlette:
    """Return the application of the model, its weights loaded, and register what "auto" turned out to mean."""
    from mllama_cli.engine.engine import Engine
    from mllama_cli.serving.app import create_app
    from mllama_cli.serving.registration import keys_of

    key = request.key
    engine = Engine(
        Path(key.path),
        request.name,
        device=key.device,
        dtype=key.dtype,
        quantize=key.quantize or None,
        exact=key.exact,
        image_kv=key.image_kv or None,
        fast=key.fast,
        adapters=[Path(path) for path, _ in key.adapters],
        crew=crew,
        load_soon=True,
    )
    if engine.model.team is not None:
        engine.model.team.crew.on_lost = lambda error: _end()
    for event in engine.load_weights(vision=engine.has_vision):
        report(event)
    registration.add(keys_of(engine, key))
    settings = ServerSettings(max_body=MAX_BODY, max_context=MAX_CONTEXT, grace=GRACE_SECONDS)
    return create_app(engine, settings, idle=idle)


def _end() -> None:
    signal.raise_signal(signal.SIGTERM)


def _watch_log(key: EngineKey) -> None:
    """Keep the log from growing without bounds, whoever writes to it. Call it in the event loop."""
    shorten_log(log_file(key))
    asyncio.get_running_loop().call_later(LOG_SECONDS, _watch_log, key)


if __name__ == "__main__":
    main(sys.argv[1])
