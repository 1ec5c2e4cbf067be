"""The weights leave memory when nobody has asked for a while, and come back for the next request."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from starlette.applications import Starlette

from mllama_cli.core.errors import UsageError
from mllama_cli.engine.engine import Engine
from mllama_cli.hub.catalog import built_in
from mllama_cli.serving.app import create_app
from mllama_cli.serving.settings import ServerSettings


def _open() -> Engine:
    entry = built_in()
    return Engine(entry.path, entry.name, device="cpu", dtype="float32")


@asynccontextmanager
async def client_of(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """Run an application and yield a client of it."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        yield client


async def left_memory(app: Starlette) -> None:
    """Wait until the weights have left memory."""
    for _ in range(1000):
        if not app.state.service.is_loaded:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the weights stay in memory")


@pytest.mark.anyio
async def test_weights_leave_and_come_back() -> None:
    app = create_app(_open(), ServerSettings(keep_alive=0.05, grace=0), reopen=_open)
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    async with client_of(app) as client:
        network = weakref.ref(app.state.service.engine.network)
        first = await client.post("/v1/chat/completions", json=body)
        for _ in range(1000):
            await asyncio.sleep(0.02)
            if network() is None:
                break
        assert network() is None, gc.get_referrers(network())
        assert (await client.get("/health")).json() == {"status": "ok"}
        again = await client.post("/v1/chat/completions", json=body)
        assert first.json()["choices"] == again.json()["choices"]


@pytest.mark.anyio
async def test_the_collector_skips_the_model_only_while_it_serves() -> None:
    app = create_app(_open(), ServerSettings(keep_alive=3600, grace=0), reopen=_open)
    async with client_of(app) as client:
        for _ in range(1000):
            if gc.get_freeze_count():
                break
            await asyncio.sleep(0.02)
        assert gc.get_freeze_count() > 10_000
        await client.post("/api/generate", json={"model": "sketch", "keep_alive": 0})
        await left_memory(app)
        assert gc.get_freeze_count() == 0


def test_it_needs_to_know_how_to_open_the_model_again() -> None:
    with pytest.raises(UsageError, match="keep_alive"):
        create_app(_open(), ServerSettings(keep_alive=1))


@pytest.mark.anyio
async def test_ollamas_clients_load_and_unload_the_weights() -> None:
    app = create_app(_open(), ServerSettings(keep_alive=3600, grace=0), reopen=_open)
    async with client_of(app) as client:

        async def in_memory() -> int:
            return len((await client.get("/api/ps")).json()["models"])

        assert await in_memory() == 1
        unloaded = await client.post("/api/generate", json={"model": "sketch", "keep_alive": 0})
        assert (unloaded.json()["done_reason"], await in_memory()) == ("unload", 0)
        loaded = await client.post("/api/chat", json={"model": "sketch", "messages": []})
        assert (loaded.json()["done_reason"], await in_memory()) == ("load", 1)


@pytest.mark.anyio
async def test_the_last_requests_keep_alive_counts_until_the_weights_leave() -> None:
    app = create_app(_open(), ServerSettings(keep_alive=3600, grace=0), reopen=_open)
    service = app.state.service
    async with client_of(app) as client:

        async def ask(keep_alive: object) -> None:
            options = {"num_predict": 2}
            body = {"prompt": "Hi", "stream": False, "options": options, "keep_alive": keep_alive}
            assert (await client.post("/api/generate", json=body)).status_code == 200

        for asked, kept in ((60, 60.0), (None, 60.0), ("-1m", None), ("90s", 90.0)):
            await ask(asked)
            assert service.is_loaded
            assert service.keep_alive == kept
        (entry,) = (await client.get("/api/ps")).json()["models"]
        left = datetime.fromisoformat(entry["expires_at"]) - datetime.now(UTC)
        assert timedelta(0) < left <= timedelta(seconds=90)
        await ask(0)
        await left_memory(app)
        await ask(None)
        assert service.is_loaded
        assert service.keep_alive == 3600


@pytest.mark.anyio
async def test_a_server_that_keeps_its_weights_ignores_keep_alive() -> None:
    app = create_app(_open(), ServerSettings(grace=0))
    async with client_of(app) as client:
        body = {"prompt": "Hi", "stream": False, "options": {"num_predict": 2}, "keep_alive": 0}
        await client.post("/api/generate", json=body)
        await asyncio.sleep(0)
        assert (await client.get("/api/ps")).json()["models"]
