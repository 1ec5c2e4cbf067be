"""The ASGI application: routes, and what is around them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from mllama_cli.engine.engine import Engine
from mllama_cli.serving.access_log import AccessLog
from mllama_cli.serving.bodies import BodyGuard
from mllama_cli.serving.boundary import ErrorBoundary
from mllama_cli.serving.errors import HANDLERS
from mllama_cli.serving.guard import HostGuard, KeyGuard, OriginGuard
from mllama_cli.serving.health import health, metrics, openapi
from mllama_cli.serving.idle import IdleEnd
from mllama_cli.serving.native.endpoints import ROUTES
from mllama_cli.serving.ollama.chat import chat
from mllama_cli.serving.ollama.generate import generate
from mllama_cli.serving.ollama.models import ps, show, tags, version
from mllama_cli.serving.ollama.refusals import change, embed, pull
from mllama_cli.serving.openai.chat import chat_completions
from mllama_cli.serving.openai.completions import completions
from mllama_cli.serving.openai.models import get_model, list_models
from mllama_cli.serving.page import page
from mllama_cli.serving.service import Service
from mllama_cli.serving.settings import ServerSettings


def create_app(
    engine: Engine,
    settings: ServerSettings | None = None,
    *,
    log: Callable[[str], None] | None = None,
    reopen: Callable[[], Engine] | None = None,
    idle: IdleEnd | None = None,
    address: str = "",
) -> Starlette:
    """Return an ASGI application that answers with an engine, whose weights are loaded when the application starts.

    The application's lifespan must be run, as uvicorn does. ``app.state.service`` is its Service. ``log`` gets a line
    about each request. ``reopen`` opens the same model again where ``settings.keep_alive`` drops its weights.
    ``idle`` ends a server that commands have started. ``address`` is the URL that our own clients are told.
    """
    settings = settings or ServerSettings()
    service = Service(engine, settings, reopen)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        yield
        await service.close()

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/embeddings", embed, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", get_model),
            Route("/api/chat", chat, methods=["POST"]),
            Route("/api/generate", generate, methods=["POST"]),
            Route("/api/tags", tags),
            Route("/api/ps", ps),
            Route("/api/show", show, methods=["POST"]),
            Route("/api/version", version),
            Route("/api/pull", pull, methods=["POST"]),
            Route("/api/push", change, methods=["POST"]),
            Route("/api/create", change, methods=["POST"]),
            Route("/api/copy", change, methods=["POST"]),
            Route("/api/delete", change, methods=["DELETE"]),
            Route("/api/blobs/{digest}", change, methods=["HEAD", "POST"]),
            Route("/api/embed", embed, methods=["POST"]),
            Route("/api/embeddings", embed, methods=["POST"]),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            *ROUTES,
        ],
        middleware=[
            Middleware(AccessLog, write=log),
            Middleware(ErrorBoundary),
            Middleware(HostGuard, settings),
            Middleware(OriginGuard, settings),
            Middleware(KeyGuard, settings),
            Middleware(BodyGuard, settings),
        ],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    app.state.service, app.state.idle, app.state.address = service, idle, address
    return app
