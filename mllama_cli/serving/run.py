"""Run an application with uvicorn on a bound socket, until a signal ends it in order."""

import asyncio
import errno
import math
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from mllama_cli.serving.protocol import LimitedProtocol
from mllama_cli.serving.sockets import port_taken

KEEP_ALIVE_SECONDS = 75
"""How long a connection may be idle between requests."""
EXTRA_SECONDS = 2
"""What clients get to read the end of their answers when the server shuts down."""
SWITCH_SECONDS = 0.0005
"""How long a thread may keep the others waiting: the engine's has a step to launch every few milliseconds."""


class Ending(Protocol):
    """What knows the running answers."""

    @property
    def grace(self) -> float:
        """Return the seconds that ``close`` lets them run."""
        ...

    async def close(self) -> None:
        """Take no more requests, and let the running answers end."""
        ...

    def abort(self) -> None:
        """End them now."""
        ...


def serve(app: ASGIApp, service: Ending, bound: Sequence[socket.socket], *, ready: Callable[[], None]) -> int:
    """Answer on bound sockets until SIGINT or SIGTERM; return that signal.

    ``ready`` is called when the server listens. The first signal lets running answers end for ``service.grace``
    seconds, the second ends them at once, the third the process. Raise MllamaError if the port of the first is taken.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    config = uvicorn.Config(
        app,
        http=LimitedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(service.grace) + EXTRA_SECONDS,
    )
    port = bound[0].getsockname()[1] if bound[0].family != getattr(socket, "AF_UNIX", None) else 0
    try:
        return asyncio.run(_serve(_Server(config, ready), service, bound))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # another server has listened there while the model was loading
            raise port_taken(port) from error
        raise


async def _serve(server: "_Server", service: Ending, bound: Sequence[socket.socket]) -> int:
    received: list[int] = []
    closing: list[asyncio.Task[None]] = []

    def stop(number: int) -> None:
        received.append(number)
        if len(received) == 1:
            server.should_exit = True
            closing.append(asyncio.create_task(service.close()))
        else:
            service.abort()
            server.force_exit = True

    with _signals(stop):
        await server.serve([*bound])
    return received[0] if received else 0


@contextmanager
def _signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Call ``stop`` in the event loop for the first two signals; after that they act as before."""
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {}
    count = 0

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count == 2:
            restore()
        loop.call_soon_threadsafe(stop, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


class _Server(uvicorn.Server):
    """A server that leaves signals to us and says when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()
