"""An application that answers before its model is open: it reports the progress to clients that wait."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mllama_cli.core.errors import BusyError, EngineError, MllamaError
from mllama_cli.core.events import Event, LoadProgress
from mllama_cli.engine.device import is_out_of_memory, memory_shortage
from mllama_cli.remote.codec import from_json
from mllama_cli.remote.events import error_fields, event_line, line
from mllama_cli.remote.question import READY_PATH, STOP_PATH, Use
from mllama_cli.serving.connection import StreamResponse
from mllama_cli.serving.errors import status_of
from mllama_cli.serving.idle import IdleEnd
from mllama_cli.serving.json_response import json_response, read_object
from mllama_cli.serving.native.endpoints import LINES, introduced, stopping
from mllama_cli.serving.native.heartbeat import with_heartbeats
from mllama_cli.serving.service import Service

UNUSED_PATHS = ("/mllama/engine", "/health", "/metrics")
"""Paths that ask how an engine is, which does not count as using it."""
FAILED_SECONDS = 2.0
"""How long an engine that failed to load tells clients why."""


class Opening:
    """ASGI application that opens another on a thread, to which it leaves all requests from then on.

    Args:
        name: of the model, for messages.
        open_app: returns the application; called with a function that reports the events of loading.
        idle: counts requests as uses.
        end: ends the process in order, after a failure.
    """

    def __init__(
        self,
        name: str,
        open_app: Callable[[Callable[[Event], None]], Starlette],
        idle: IdleEnd,
        end: Callable[[], None],
        grace: float,
    ) -> None:
        self._name, self._open_app, self._idle, self._end = name, open_app, idle, end
        self.grace = grace
        self._opener = ThreadPoolExecutor(1, "open")
        """Not the event loop's own threads, which it waits for at its end: opening a model takes minutes."""
        self._app: Starlette | None = None
        self._failure: MllamaError | None = None
        self._events: list[Event] = []
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._lifespan(receive, send)
        if scope["path"] in UNUSED_PATHS:
            return await self._respond(scope, receive, send)
        with self._idle.use():
            return await self._respond(scope, receive, send)

    async def close(self) -> None:
        """Let running answers end for ``grace`` seconds."""
        self._ended.set()
        if (service := self._service) is not None:
            await service.close()

    def abort(self) -> None:
        """End all answers now, with an error."""
        if (service := self._service) is not None:
            service.abort()

    @property
    def _service(self) -> Service | None:
        return self._app.state.service if self._app is not None else None

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        opening = asyncio.create_task(self._open())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._ended.set()
        if self._app is None:
            opening.cancel()  # its thread ends with the process
        await asyncio.wait([opening])
        await send({"type": "lifespan.shutdown.complete"})

    async def _open(self) -> None:
        """Open the application and run its lifespan until ``close``."""
        loop = asyncio.get_running_loop()

        def report(event: Event) -> None:
            loop.call_soon_threadsafe(self._tell, event)

        try:
            app = await loop.run_in_executor(self._opener, self._open_app, report)
            async with app.router.lifespan_context(app):
                self._app = app
                self._wake()
                self._idle.wait()
                await self._ended.wait()
        except Exception as error:
            self._failure = _explained(error)
            self._wake()
            loop.call_later(FAILED_SECONDS, self._end)

    def _tell(self, event: Event) -> None:
        if self._events and isinstance(event, LoadProgress) and isinstance(self._events[-1], LoadProgress):
            self._events.pop()  # who comes now need not hear the whole of it
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: ASGIApp
        if scope["path"] == STOP_PATH:
            response = stopping(scope)
        elif self._app is not None and not self._ended.is_set():
            response = self._app
        elif scope["path"] == READY_PATH and not self._ended.is_set():
            response = await self._ready(Request(scope, receive))
        else:
            error = self._failure or BusyError(f"{self._name} is loading", "Ask again in a moment.")
            response = json_response(error_fields(error), status_of(error))
        await response(scope, receive, send)

    async def _ready(self, request: Request) -> Response:
        try:
            use = from_json(Use, await read_object(request), "The request")
        except MllamaError as error:
            return json_response(error_fields(error), status_of(error))
        self._idle.keep(use.keep_alive)
        return StreamResponse(with_heartbeats(self._progress(use)), LINES)

    async def _progress(self, use: Use) -> AsyncGenerator[bytes, None]:
        """Yield lines: the events of loading, then what the engine is, or why it failed."""
        told: list[Event] = []
        while self._app is None and self._failure is None:
            changed = self._changed
            new = [event for event in self._events if event not in told]
            told = list(self._events)
            if new:
                yield b"".join(map(event_line, new))
            await changed.wait()
        if self._app is not None:
            async for said in introduced(self._app, use):
                yield said
        elif self._failure is not None:
            yield line(error_fields(self._failure))


def _explained(error: Exception) -> MllamaError:
    if isinstance(error, MllamaError):
        return error
    if is_out_of_memory(error):
        return memory_shortage("the model")
    return EngineError(f"The engine failed to start: {type(error).__name__}: {error}", "Please report this.")
