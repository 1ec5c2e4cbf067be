"""Limit the bodies of requests: their size, the time that a client takes, and what all take together."""

import asyncio
import time

import psutil
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mllama_cli.serving.errors import RETRY_AFTER_SECONDS, error_response
from mllama_cli.serving.settings import ServerSettings


class BodyGuard:
    """ASGI middleware that refuses a body by its declared size before it is read, and else as soon as it is too much.

    What a request's body takes counts until the request has been answered.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._limit, self._seconds = settings.max_body, settings.body_seconds
        self._all_limit = max(4 * self._limit, psutil.virtual_memory().total // 4)
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._limit:
            error = self._too_large()
            response = error_response(scope["path"], error.status_code, error.detail, dict(error.headers or {}))
            return await response(scope, receive, send)
        body = _Body(time.monotonic() + self._seconds)

        async def limited() -> Message:
            if body.complete:
                return await receive()
            try:
                async with asyncio.timeout(body.deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, f"The request's body took longer than {self._seconds:g} seconds", {"connection": "close"}
                ) from None
            size = len(message.get("body", b""))
            body.size += size
            self._held += size
            body.complete = not message.get("more_body", False)
            if body.size > self._limit:
                raise self._too_large()
            if self._held > self._all_limit:
                busy = {"connection": "close", "retry-after": str(RETRY_AFTER_SECONDS)}
                raise HTTPException(503, "The bodies of other requests take all memory that may be used", busy)
            return message

        try:
            return await self._app(scope, limited, send)
        finally:
            self._held -= body.size

    def _too_large(self) -> HTTPException:
        size = f"{self._limit >> 20} MiB" if self._limit >= 1 << 20 else f"{self._limit} bytes"
        return HTTPException(413, f"The request's body is larger than {size}", {"connection": "close"})


class _Body:
    """A body that is being received."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.size, self.complete = 0, False
