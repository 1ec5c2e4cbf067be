"""ASGI middlewares that keep out who must not ask: foreign hosts, foreign pages, and clients without the key."""

import hmac
import ipaddress
import re
import socket

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mllama_cli.serving.errors import error_response
from mllama_cli.serving.settings import ServerSettings

_LOCAL_DOMAINS = (".localhost", ".local", ".internal")
"""Domains that no public name server answers for, so no attacker can point them here."""
PRIVATE = "mllama.private"
"""In the scope of a request that comes where only this user's commands can ask."""
_OPEN_PATHS = ("/", "/health")
"""What answers without a key: the page, which asks for it, and the probe of a supervisor."""
_CORS_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
_PREFLIGHT_SECONDS = "600"


class HostGuard:
    """Refuse requests to a name that is not this server's: a foreign page whose name now resolves to this address.

    Addresses are accepted, since no name server resolves them; so is a socket file, which no page can reach.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._any = "*" in settings.allowed_hosts
        own = (settings.host, socket.gethostname(), "localhost", *settings.allowed_hosts)
        self._names = {name.lower().rstrip(".") for name in own}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_allowed(scope):
            message = "The server does not go by this Host name; --allowed-host NAME adds it"
            response = error_response(scope["path"], 403, message)
            return await response(scope, receive, send)
        return await self._app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        server = scope.get("server")
        given = Headers(scope=scope).getlist("host")
        if self._any or (server is not None and server[1] is None) or not given:
            return True
        name = _host_name(given[0]).lower().rstrip(".")
        return len(given) == 1 and (name in self._names or name.endswith(_LOCAL_DOMAINS) or _is_address(name))


class OriginGuard:
    """Let web pages of the same origin and of ``cors`` ask, answer their preflights, and refuse other pages."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._any = "*" in settings.cors
        # As browsers send them: without a slash at the end, but for "file://".
        self._origins = {re.sub("(?<=[^:/])/+$", "", origin.lower()) for origin in settings.cors}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (origin := (headers := Headers(scope=scope)).get("origin")) is None:
            return await self._app(scope, receive, send)
        listed = self._any or origin.lower() in self._origins
        if not listed and origin.lower().partition("://")[2] != headers.get("host", "").lower():
            message = f"Pages of another origin may not ask this server; --cors {origin[:200]} allows it"
            return await error_response(scope["path"], 403, message)(scope, receive, send)
        if listed and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return await Response(status_code=204, headers=_preflight(origin, headers))(scope, receive, send)

        async def with_origin(message: Message) -> None:
            if listed and message["type"] == "http.response.start":
                more = MutableHeaders(scope=message)
                more["access-control-allow-origin"] = origin
                more.add_vary_header("origin")
            await send(message)

        return await self._app(scope, receive, with_origin)


class KeyGuard:
    """Require the API key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; set ``PRIVATE``."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._key, self._private_key = settings.api_key, settings.private_key
        self._private = settings.private_server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        is_private = self._private is not None and scope.get("server") == self._private
        key = self._private_key if is_private else self._key
        if key is None or scope["path"] in _OPEN_PATHS or _has_key(scope, key.encode()):
            return await self._app({**scope, PRIVATE: True} if is_private else scope, receive, send)
        message = "This server needs its API key: send it as `Authorization: Bearer KEY`"
        response = error_response(scope["path"], 401, message, {"www-authenticate": "Bearer"})
        return await response(scope, receive, send)


def _has_key(scope: Scope, key: bytes) -> bool:
    headers = Headers(scope=scope)
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = headers.get("x-api-key", "")
    return hmac.compare_digest(given.strip(" \t").encode("latin-1"), key)


def _host_name(header: str) -> str:
    """Return the name in a Host header, without its port.

    >>> _host_name("[::1]:80"), _host_name("localhost:80"), _host_name("::1")
    ('::1', 'localhost', '::1')
    """
    header = header.strip()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header if header.count(":") > 1 else header.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _preflight(origin: str, headers: Headers) -> dict[str, str]:
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": _CORS_METHODS,
        "access-control-allow-headers": headers.get("access-control-request-headers", "*"),
        "access-control-max-age": _PREFLIGHT_SECONDS,
        "access-control-allow-private-network": "true",
        "vary": "origin",
    }
