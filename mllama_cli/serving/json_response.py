"""JSON as this server reads and writes it."""

import asyncio
import json
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import replace_surrogates
from mllama_cli.system.json_file import parse_object

_BODY_HINT = 'Expected: {"model": "...", ...}'


def dump_json(data: Any) -> bytes:
    """Return compact JSON in UTF-8."""
    return replace_surrogates(json.dumps(data, ensure_ascii=False, separators=(",", ":"))).encode()


def json_response(
    data: Any, status: int = 200, headers: dict[str, str] | None = None, background: BackgroundTask | None = None
) -> Response:
    """Return a response, after which ``background`` runs."""
    return Response(dump_json(data), status, headers, "application/json", background)


async def read_object(request: Request) -> dict[str, Any]:
    """Return the object that is a request's body, whatever its Content-Type. Raise UsageError if it is none."""
    return await asyncio.to_thread(parse_body, await read_body(request))


async def read_body(request: Request) -> bytes:
    """Return a request's body, of which the request keeps no copy."""
    return b"".join([chunk async for chunk in request.stream()])


def parse_body(body: bytes) -> dict[str, Any]:
    """Return the object that is a request's body. Raise UsageError if it is none."""
    if not body.strip():
        raise UsageError("The request has no body, where a JSON object was expected", _BODY_HINT)
    return parse_object(body, "The request's body", error=UsageError, hint=_BODY_HINT)
