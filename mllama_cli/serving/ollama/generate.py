"""POST /api/generate."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.text import shown
from mllama_cli.processing.message_parts import Reader, read_picture, valid_text
from mllama_cli.processing.processor import ModelInputs
from mllama_cli.serving.errors import FieldError
from mllama_cli.serving.ollama.context import after, read_context, write_context
from mllama_cli.serving.ollama.fields import Body, Options, read_list, read_options, read_text
from mllama_cli.serving.ollama.reply import Reply, nothing_asked
from mllama_cli.serving.service import Service


@dataclass(frozen=True)
class Prompt:
    """What /api/generate is asked. ``context`` is what an earlier answer gave back, not checked yet."""

    text: str
    images: tuple[ImagePart, ...]
    system: str
    raw: bool
    context: tuple[Any, ...]


async def generate(request: Request) -> Response:
    """Answer one prompt."""
    start = time.perf_counter()
    service: Service = request.app.state.service
    prompt, options = await service.read(request, parse)
    if options.model:
        service.names.require(options.model)
    if not prompt.text:
        return await nothing_asked(service, options, _response)
    inputs = await _inputs(service, prompt)
    context_of = None if prompt.raw else _context_after(inputs, service.engine.config.image_token_index)
    del prompt  # the files of its images, while the answer is awaited
    sampling = service.sampling(**options.sampling)
    return await Reply(service, options, inputs, sampling, _response, start, context_of).respond(request)


def parse(body: Body, read_images: Reader) -> tuple[Prompt, Options]:
    """Return the prompt and the options of a request. Raise UsageError, ImageError or DownloadError."""
    options = read_options(body)
    if read_text(body, "template"):
        raise FieldError(
            "template",
            "template is not supported: the model's own chat template is used",
            "Leave it out, or send a finished prompt with raw.",
        )
    raw = body.get("raw")
    if type(raw) not in (bool, type(None)):
        raise FieldError("raw", f"raw must be true or false, not {shown(raw)}")
    system, context = valid_text(read_text(body, "system"), "system"), read_list(body, "context")
    if raw and (system or context):
        raise FieldError("raw", "raw mode does not support template, system, or context", "Write them into the prompt.")
    text = valid_text(read_text(body, "prompt"), "prompt")
    places = [(f"images[{index}]", image) for index, image in enumerate(read_list(body, "images"))]
    read_all = (read_picture(image, "images", place, read_images, place) for place, image in places)
    images = tuple(image for several in read_all for image in several)
    return Prompt(text, images, system, bool(raw), tuple(context)), options


async def _inputs(service: Service, prompt: Prompt) -> ModelInputs:
    if prompt.raw:
        return await service.raw_inputs(prompt.text, prompt.images)
    model = service.engine.model
    image_token = model.config.image_token_index if model.has_vision else None
    context = read_context(prompt.context, image_token, model.config.text_config.vocab_size)
    inputs = await service.inputs(Conversation.ask(prompt.text, prompt.images, prompt.system))
    tokenizer = model.processor.tokenizer
    bos = tokenizer.special_ids.get(tokenizer.special_names.get("bos_token", ""))
    return after(context, inputs, model.eos, bos, service.recent_image)


def _context_after(inputs: ModelInputs, image_token: int) -> Callable[[list[int]], dict[str, Any]]:
    """Return a function that writes the context of an answer."""
    return lambda answer: {"context": write_context(inputs, answer, image_token)}


def _response(text: str) -> dict[str, Any]:
    return {"response": text}
