"""POST /mllama/answer, /mllama/choices, /mllama/ready and /mllama/stop, GET /mllama/engine."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import psutil
import torch
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mllama_cli.core.answerer import Prompt, RawPrompt
from mllama_cli.core.errors import MllamaError
from mllama_cli.core.version import __version__
from mllama_cli.processing.message_parts import Reader
from mllama_cli.processing.processor import ModelInputs
from mllama_cli.remote.codec import from_json, to_json
from mllama_cli.remote.events import error_fields, event_line, line
from mllama_cli.remote.question import (
    ANSWER_PATH,
    CHOICES_PATH,
    ENGINE_PATH,
    PROTOCOL,
    READY_PATH,
    STOP_PATH,
    Choices,
    EngineInfo,
    Probabilities,
    Question,
    Use,
)
from mllama_cli.serving.connection import StreamResponse
from mllama_cli.serving.guard import PRIVATE
from mllama_cli.serving.idle import IdleEnd
from mllama_cli.serving.json_response import json_response, read_object
from mllama_cli.serving.native.heartbeat import with_heartbeats
from mllama_cli.serving.ollama.models import quantization_level
from mllama_cli.serving.service import Service

LINES = "application/x-ndjson"
HOLD_POLL_SECONDS = 0.2


async def answer(request: Request) -> Response:
    """Answer one prompt with the events of the engine."""
    service: Service = request.app.state.service
    question = await service.read(request, _question)
    return StreamResponse(with_heartbeats(_events(service, question)), LINES)


async def choices(request: Request) -> Response:
    """Return how likely each of some texts is as the answer to a prompt."""
    service: Service = request.app.state.service
    asked = await service.read(request, _choices)
    return StreamResponse(with_heartbeats(_probabilities(service, asked)), LINES)


async def ready(request: Request) -> Response:
    """Say what the engine is; it stays for as long as the client wants, unless it is shutting down."""
    request.app.state.service.require_not_ending()
    use = from_json(Use, await read_object(request), "The request")
    idle: IdleEnd | None = request.app.state.idle
    if idle is not None:
        idle.keep(use.keep_alive)
    return StreamResponse(with_heartbeats(introduced(request.app, use)), LINES)


async def introduced(app: Starlette, use: Use) -> AsyncGenerator[bytes, None]:
    """Yield what the engine is, then nothing for as long as the client holds it and the server runs."""
    yield line(info(app))
    while use.hold and app.state.service.state == "ok":
        await asyncio.sleep(HOLD_POLL_SECONDS)


async def engine(request: Request) -> Response:
    """Say what the engine is and does."""
    return json_response(info(request.app))


async def stop(request: Request) -> Response:
    """End this process in order, for clients of this machine alone."""
    return stopping(request.scope)


def stopping(scope: Any) -> Response:
    """Return the answer after which the process ends in order. Raise HTTPException for a client from elsewhere."""
    server = scope.get("server")
    if server is not None and server[1] is not None and not scope.get(PRIVATE):
        raise HTTPException(403, "A server is stopped on its own machine: `mllama stop` there, or Ctrl-C")
    return json_response({"pid": os.getpid()}, background=BackgroundTask(signal.raise_signal, signal.SIGTERM))


ROUTES = [
    Route(ANSWER_PATH, answer, methods=["POST"]),
    Route(CHOICES_PATH, choices, methods=["POST"]),
    Route(READY_PATH, ready, methods=["POST"]),
    Route(ENGINE_PATH, engine),
    Route(STOP_PATH, stop, methods=["POST"]),
]


def info(app: Starlette) -> dict[str, Any]:
    """Return what the engine of an application says about itself, an EngineInfo as JSON."""
    service: Service = app.state.service
    idle: IdleEnd | None = app.state.idle
    stats, model = service.stats(), service.engine
    on_gpu = model.device.type == "cuda"
    found = EngineInfo(
        about=replace(model.about, context=service.max_context),
        version=__version__,
        protocol=PROTOCOL,
        pid=os.getpid(),
        background=idle is not None,
        quantization=quantization_level(model),
        memory=torch.cuda.memory_reserved(model.device) if on_gpu else psutil.Process().memory_info().rss,
        slots=stats.slots,
        running=stats.running,
        waiting=stats.waiting,
        idle_left=idle.left if idle is not None else None,
        address=app.state.address,
        fallback_reason=model.fallback_reason,
    )
    fields: dict[str, Any] = to_json(found)
    return fields


def _question(body: dict[str, Any], read_images: Reader) -> Question:
    question = from_json(Question, body, "The request")
    if not isinstance(question.prompt, RawPrompt):
        question.prompt.require_answerable()
    return question


def _choices(body: dict[str, Any], read_images: Reader) -> Choices:
    return from_json(Choices, body, "The request")


async def _events(service: Service, question: Question) -> AsyncGenerator[bytes, None]:
    """Yield lines: the events of an answer, or at the end what went wrong."""
    try:
        inputs = await _inputs(service, question.prompt)
        sampling = service.limited(question.sampling or service.engine.default_sampling())
        async with aclosing(service.answers([(inputs, sampling)])) as batches:
            async for batch in batches:
                yield b"".join(event_line(event) for _, event in batch)
    except MllamaError as error:
        yield line(error_fields(error))


async def _probabilities(service: Service, asked: Choices) -> AsyncGenerator[bytes, None]:
    """Yield one line: the probabilities, or what went wrong."""
    try:
        found = await service.probabilities(await _inputs(service, asked.prompt), asked.texts)
        yield line(to_json(Probabilities(found)))
    except MllamaError as error:
        yield line(error_fields(error))


async def _inputs(service: Service, prompt: Prompt) -> ModelInputs:
    if isinstance(prompt, RawPrompt):
        return await service.raw_inputs(prompt.text, prompt.images, prompt.prefill)
    return await service.inputs(prompt)
