"""The line about each request: what it cost, and nothing that it said."""

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from mllama_cli.core.events import Token
from mllama_cli.engine.batch.loop import LoopStats
from mllama_cli.serving.access_log import AccessLog
from mllama_cli.serving.metrics import Metrics

METRICS = Metrics("sketch", lambda: LoopStats(1, 0, 0), 1)


async def answer(request: Request) -> PlainTextResponse:
    recorder = METRICS.begin(12)
    recorder(Token(1, "a"))
    recorder(Token(2, "b"))
    return PlainTextResponse("ab")


async def log_of(path: str) -> list[str]:
    lines: list[str] = []
    app = AccessLog(Starlette(routes=[Route("/answer", answer, methods=["POST"])]), lines.append)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        await client.post(path, content=b"secret words")
    return lines


@pytest.mark.anyio
async def test_a_line_has_method_path_status_bytes_seconds_and_tokens() -> None:
    (line,) = await log_of("/answer?key=secret")
    words = line.split()
    assert words[:5] == ["POST", "/answer", "200", "2", "B"]
    assert words[6:] == ["s", "12", "+", "2", "tokens"]
    assert "secret" not in line


@pytest.mark.anyio
async def test_a_path_cannot_forge_a_line() -> None:
    (line,) = await log_of("/x%0AGET%20/y%1B[2J" + "z" * 500)
    assert line.isprintable()
    assert " 404 " in line
    assert len(line) < 150
