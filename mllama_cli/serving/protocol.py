"""uvicorn's HTTP protocol with limits on a request's head, which it does not have itself."""

import asyncio
import socket
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mllama_cli.system.private_sockets import is_own_peer

MAX_HEAD_BYTES = 64 * 2**10
"""Request line and headers."""
HEAD_SECONDS = 30.0
"""Time for a client to send them, also after it has connected."""
LINGER_BYTES = 4 * 2**20
LINGER_SECONDS = 2.0
"""How long to read on after an answer to a request that is not complete: closing at once would lose the answer."""


class LimitedProtocol(HttpToolsProtocol):
    """Close a connection whose request does not begin in time, and refuse one whose head is too long."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_head, self._head_bytes, self._heads = True, 0, 0
        self._refused = self._lingers = False
        self._ignored_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()
        connected = transport.get_extra_info("socket")
        if connected.family == getattr(socket, "AF_UNIX", None) and not is_own_peer(connected):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            self._ignored_bytes += len(data)
            if self._ignored_bytes > LINGER_BYTES:
                self.transport.close()
            return
        if self._in_head and self._head_timer is None:  # the next request of a connection that was kept alive
            self._start_timer()
        in_head, heads = self._in_head, self._heads
        super().data_received(data)
        if in_head and self._in_head and self._heads == heads:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._heads += 1
        self._stop_timer()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refuse()
        else:
            super().on_headers_complete()
            self.cycle.transport = cast(asyncio.Transport, _Lingering(self))

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        if not self._refused:
            super().on_message_complete()

    def _refuse(self) -> None:
        self._refused = True
        if not self.transport.is_closing():
            head = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            self.transport.write(head)
            self.close_after_answer()

    def close_after_answer(self) -> None:
        """Close the connection; if the client may still be sending, after it has had time to read the answer."""
        if self._in_head and not self._refused:
            self.transport.close()
        elif not self._lingers and not self.transport.is_closing():
            self._lingers = True
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _Lingering:
    """The transport of a request, with another way of closing."""

    def __init__(self, protocol: LimitedProtocol) -> None:
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol.transport, name)

    def close(self) -> None:
        self._protocol.close_after_answer()
