"""POST /api/chat."""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mllama_cli.core.conversation import Conversation
from mllama_cli.processing.message_parts import Reader
from mllama_cli.processing.messages import parse_messages
from mllama_cli.serving.ollama.fields import Body, Options, read_list, read_options
from mllama_cli.serving.ollama.reply import Reply, nothing_asked
from mllama_cli.serving.service import Service


async def chat(request: Request) -> Response:
    """Answer a conversation."""
    start = time.perf_counter()
    service: Service = request.app.state.service
    conversation, options = await service.read(request, parse)
    if options.model:
        service.names.require(options.model)
    if conversation is None:
        return await nothing_asked(service, options, _message)
    sampling = service.sampling(**options.sampling)
    inputs = await service.inputs(conversation)
    del conversation  # the files of its images, while the answer is awaited
    return await Reply(service, options, inputs, sampling, _message, start).respond(request)


def parse(body: Body, read_images: Reader) -> tuple[Conversation | None, Options]:
    """Return the conversation, None if there are no messages, and the options of a request.

    Raise UsageError, ImageError or DownloadError.
    """
    options = read_options(body)
    messages = read_list(body, "messages")
    return parse_messages(messages, read_images) if messages else None, options


def _message(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}
