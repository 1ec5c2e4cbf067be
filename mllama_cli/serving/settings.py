"""How a server is set up: limits, keys and what it allows."""

import re
from dataclasses import dataclass

from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import shown

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 11434
"""ollama's, so that its clients find this server."""
DEFAULT_CONTEXT = 8192
DEFAULT_QUEUE = 256
MAX_BODY = 64 * 2**20

_ORIGIN = re.compile(r"[a-zA-Z][\w+.-]*://[^/\s]*/?")
"""Also those of browser extensions and of programs with a web page inside, such as app://obsidian.md and file://."""


@dataclass(frozen=True)
class ServerSettings:
    """Settings of one server. Sizes in bytes, times in seconds.

    Attributes:
        host: the address that the server is bound to; clients may use it as a name of the server.
        api_key: what clients must send; None lets anyone ask.
        allow_image_urls: whether images may be http(s) URLs, which the server then fetches.
        cors: origins of web pages elsewhere that may ask; "*" allows any.
        allowed_hosts: names of this server besides loopback names and addresses; "*" allows any.
        slots: requests answered at once; None chooses by the memory that is free.
        max_queue: requests that may wait for a slot.
        max_context: tokens of a prompt and its answer, if the model has as many.
        body_seconds: time for a client to send a request's body.
        keep_alive: time after the last answer until the weights leave memory, to be loaded again for the next request;
            None keeps them.
        grace: time for running answers to end when the server shuts down.
        private_server: where this user's commands ask: the path of a Unix socket and None, or an address and a port.
        private_key: what is needed there in place of ``api_key``; None for a socket that only this user can use.
    """

    host: str = DEFAULT_HOST
    api_key: str | None = None
    allow_image_urls: bool = False
    cors: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    slots: int | None = None
    max_queue: int = DEFAULT_QUEUE
    max_context: int = DEFAULT_CONTEXT
    max_body: int = MAX_BODY
    body_seconds: float = 60.0
    keep_alive: float | None = None
    grace: float = 30.0
    private_server: tuple[str, int | None] | None = None
    private_key: str | None = None

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.strip():
            raise UsageError("The API key is empty", "Give a key, or leave the option out to let anyone ask.")
        for origin in self.cors:
            if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
                raise UsageError(
                    f"{shown(origin)} is not the origin of a web page",
                    'Expected: https://example.org or http://localhost:3000, without a path, or "*" for all.',
                )
