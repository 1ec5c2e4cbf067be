"""Note when each request arrived and what it used, and write a line about it: nothing that it said."""

from collections.abc import Callable
from contextvars import ContextVar
from time import perf_counter
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mllama_cli.core.text import one_line

MAX_PATH = 80
"""Characters of a path in a line."""

CLIENT_LEFT = 499
"""The status in the line about a client that left before it was sent one, as in nginx."""


class RequestRecord:
    """What one HTTP request used; ``arrived`` is its time by ``perf_counter``."""

    def __init__(self) -> None:
        self.arrived = perf_counter()
        self.status = 0
        self.sent_bytes = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0


current_request: ContextVar[RequestRecord | None] = ContextVar("current_request", default=None)
"""The record of the HTTP request that the current task answers."""


class AccessLog:
    """ASGI middleware, the outermost: keep a ``RequestRecord`` and ``write`` a line when the answer has ended."""

    def __init__(self, app: ASGIApp, write: Callable[[str], None] | None = None) -> None:
        self.app, self.write = app, write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        record = RequestRecord()
        token = current_request.set(record)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            else:
                record.sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:
            record.status = record.status or 500  # which is sent outside of this
            raise
        finally:
            current_request.reset(token)
            if self.write is not None:
                self.write(_line(scope, record))


def _line(scope: Scope, record: RequestRecord) -> str:
    """Return method, path without its query, status, bytes of the body, seconds, and tokens read and generated."""
    raw_path = scope.get("raw_path") or quote(scope["path"]).encode()
    words = [
        one_line(scope["method"], MAX_PATH),
        one_line(raw_path.decode("latin-1"), MAX_PATH),
        str(record.status or CLIENT_LEFT),
        f"{record.sent_bytes} B",
        f"{perf_counter() - record.arrived:.3f} s",
    ]
    if record.prompt_tokens:
        words.append(f"{record.prompt_tokens} + {record.generated_tokens} tokens")
    return " ".join(words)
