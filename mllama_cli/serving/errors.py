"""Errors over HTTP: one table of status codes, and each dialect's form of a body."""

import re
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mllama_cli.core.errors import (
    BusyError,
    ChatNotFoundError,
    ContextLengthError,
    DownloadError,
    ImageError,
    MemoryShortageError,
    MllamaError,
    ModelNotFoundError,
    TemplateError,
    UsageError,
)
from mllama_cli.core.text import one_line
from mllama_cli.remote.events import error_fields
from mllama_cli.serving.json_response import json_response

STATUSES: tuple[tuple[type[MllamaError], int], ...] = (
    (ModelNotFoundError, 404),
    (ChatNotFoundError, 404),
    (UsageError, 400),
    (ImageError, 400),
    (TemplateError, 400),
    (ContextLengthError, 400),
    (DownloadError, 400),  # of an image whose address the client gave
    (BusyError, 503),
    (MemoryShortageError, 503),
)
"""The first row that fits counts; other errors are 500."""

RETRY_AFTER_SECONDS = 5
CLIENT_CLOSED_REQUEST = 499
"""nginx's status of a request whose client has gone; only the log sees it."""

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    503: "overloaded_error",
}
_CODES: tuple[tuple[type[MllamaError], str], ...] = (
    (ModelNotFoundError, "model_not_found"),
    (ContextLengthError, "context_length_exceeded"),
    (BusyError, "server_busy"),
    (MemoryShortageError, "out_of_memory"),
)

_NEWER_CHATS = ("/v1/responses", "/v1/messages")
"""Protocols that this server does not speak, where what is asked could be asked of chat completions."""

_PLACE = re.compile(r"messages\[\d+\][\w.\[\]]*|messages(?= )")


class FieldError(UsageError):
    """A request's field that is wrong or not supported. ``param`` is its name in the client's dialect."""

    def __init__(self, param: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.param = param


def status_of(error: MllamaError) -> int:
    """Return the status code of an error."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def describe(error: MllamaError) -> str:
    """Return what is wrong and what to do about it, as one line."""
    message = error.message if error.message.endswith((".", "!", "?")) or not error.hint else f"{error.message}."
    return one_line(f"{message} {error.hint}".strip(), 2000)


def openai_error(error: MllamaError) -> dict[str, Any]:
    """Return the body of an error in OpenAI's form; also what a stream sends after it has begun."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    place = _PLACE.match(error.message)
    return _openai_body(status_of(error), describe(error), code, place[0] if place else getattr(error, "param", None))


def ollama_error(error: MllamaError) -> dict[str, Any]:
    """Return the body of an error in ollama's form; also what a stream sends after it has begun."""
    return {"error": describe(error)}


def error_response(path: str, status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return a response for an error that is not ours, in the form of the dialect that ``path`` belongs to."""
    if _is_native(path):
        body = error_fields(MllamaError(message))
    else:
        body = {"error": message} if _is_ollama(path) else _openai_body(status, message)
    return json_response(body, status, headers)


async def answer_mllama_error(request: Request, error: Exception) -> Response:
    """Return the response for an MllamaError."""
    assert isinstance(error, MllamaError)
    status = status_of(error)
    path = request.url.path
    body = error_fields(error) if _is_native(path) else ollama_error(error) if _is_ollama(path) else openai_error(error)
    return json_response(body, status, {"retry-after": str(RETRY_AFTER_SECONDS)} if status == 503 else None)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Return the response for an unknown path, a wrong method or a body over its limits."""
    assert isinstance(error, HTTPException)
    path, message = request.url.path, error.detail
    if error.status_code == 404:
        instead = meant_path(path, [route.path for route in request.app.routes])
        message = f"There is no {one_line(path, 200)} here{f': ask {instead}' if instead else ''}"
    elif error.status_code == 405:
        message = f"{one_line(path, 200)} does not take {request.method}"
    return error_response(path, error.status_code, message, dict(error.headers or {}))


def meant_path(path: str, known: Sequence[str]) -> str:
    """Return the known path that a client meant whose base URL lacks its end or has it twice; empty if none is alike.

    >>> meant_path("/chat/completions", ["/v1/chat/completions"]), meant_path("/v1/api/chat", ["/", "/api/chat"])
    ('/v1/chat/completions', '/api/chat')
    """
    if path in _NEWER_CHATS:
        return "/v1/chat/completions"
    alike = [each for each in known if each.endswith(path) or (each != "/" and path.endswith(each))]
    return min(alike, key=len, default="")


async def answer_disconnect(request: Request, error: Exception) -> Response:
    """Return a response that nobody reads, for the access log."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _openai_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _is_native(path: str) -> bool:
    return path.startswith("/mllama/")


def _is_ollama(path: str) -> bool:
    return path.startswith("/api/")


HANDLERS: dict[Any, Any] = {
    MllamaError: answer_mllama_error,
    HTTPException: answer_http_error,
    ClientDisconnect: answer_disconnect,
}
"""starlette's exception handlers."""
