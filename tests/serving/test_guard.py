"""Who may ask: names of the server, origins of pages, keys. Tested around an application that answers everything."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mllama_cli.core.errors import UsageError
from mllama_cli.serving.guard import HostGuard, KeyGuard, OriginGuard
from mllama_cli.serving.settings import ServerSettings

Ask = Callable[..., httpx.Response]


async def _answer(request: Request) -> Response:
    return PlainTextResponse("answered")


def _asker(**settings: Any) -> Ask:
    given = ServerSettings(**settings)
    guards = [Middleware(guard, given) for guard in (HostGuard, OriginGuard, KeyGuard)]
    paths = ("/", "/health", "/v1/models", "/api/chat")
    app = Starlette(routes=[Route(path, _answer, methods=["GET", "POST"]) for path in paths], middleware=guards)

    def ask(path: str = "/v1/models", method: str = "GET", **headers: str) -> httpx.Response:
        async def call() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://localhost:11434"
            ) as client:
                return await client.request(
                    method, path, headers={k.replace("_", "-"): v.encode() for k, v in headers.items()}
                )

        return asyncio.run(call())

    return ask


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:11434", "[::1]:11434", "192.168.1.7:80", "LOCALHOST.:1", "pc.local", "a.localhost"]
)
def test_names_and_addresses_of_this_machine_are_answered(host: str) -> None:
    assert _asker()(host=host).text == "answered"


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/app", "", "http:chat.example", "a b://c"])
def test_what_cannot_be_an_origin_is_an_error_when_the_server_is_set_up(origin: str) -> None:
    with pytest.raises(UsageError, match="not the origin of a web page"):
        ServerSettings(cors=(origin,))


@pytest.mark.parametrize(
    "origin", ["https://chat.example/", "http://[::1]:3000", "app://obsidian.md", "null", "file://"]
)
def test_origins_of_pages_and_of_programs_with_a_page_inside_are_allowed(origin: str) -> None:
    answer = _asker(cors=(origin,))(origin=origin.rstrip("/") if "example" in origin else origin)
    assert answer.status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:11434", "1.2.3"])
def test_other_names_are_refused_as_dns_rebinding_uses_them(host: str) -> None:
    refused = _asker()(host=host)
    assert refused.status_code == 403
    assert "--allowed-host" in refused.json()["error"]["message"]
    assert _asker()("/api/chat", host=host).json()["error"].startswith("The server does not go by")


def test_a_name_can_be_added_and_the_bound_one_is_known() -> None:
    assert _asker(allowed_hosts=("box.example",))(host="Box.Example:80").text == "answered"
    assert _asker(host="box.example")(host="box.example").text == "answered"
    assert _asker(allowed_hosts=("*",))(host="any.example").text == "answered"


def test_a_page_of_the_same_origin_may_ask_and_others_may_not() -> None:
    ask = _asker()
    assert ask(origin="http://localhost:11434").text == "answered"
    for origin in ("http://localhost:3000", "https://evil.example", "null"):
        refused = ask(origin=origin)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers


def test_a_listed_origin_may_ask_and_read_the_answer() -> None:
    ask = _asker(cors=("http://localhost:3000/",), api_key="secret")
    preflight = ask(
        method="OPTIONS",
        origin="http://localhost:3000",
        access_control_request_method="POST",
        access_control_request_headers="authorization, content-type",
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"
    without_key = ask(origin="http://localhost:3000")
    assert without_key.status_code == 401
    assert without_key.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert without_key.headers["vary"].lower() == "origin"
    assert ask(origin="http://evil.example").status_code == 403
    assert _asker(cors=("*",))(origin="app://obsidian.md").headers["access-control-allow-origin"] == "app://obsidian.md"


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}, {"authorization": "Bearer"}]
)
def test_without_the_key_only_the_page_and_the_probe_are_answered(headers: dict[str, str]) -> None:
    ask = _asker(api_key="secret")
    for path in ("/v1/models", "/api/chat"):
        refused = ask(path, **headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "secret" not in refused.text
    assert ask("/", **headers).text == ask("/health", **headers).text == "answered"


@pytest.mark.parametrize("headers", [{"authorization": "bearer passé à"}, {"x_api_key": "passé à"}])
def test_the_key_opens(headers: dict[str, str]) -> None:
    assert _asker(api_key="passé à")(**headers).text == "answered"


def test_an_empty_key_is_an_error_and_not_an_open_server() -> None:
    with pytest.raises(UsageError, match="empty"):
        ServerSettings(api_key=" \n")
