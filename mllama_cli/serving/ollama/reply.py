"""Answer as one JSON object or as a stream of JSON lines."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mllama_cli.core.duration import nanoseconds
from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import GenerationStats, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.processing.processor import ModelInputs
from mllama_cli.serving.connection import StreamResponse, watch
from mllama_cli.serving.errors import ollama_error
from mllama_cli.serving.json_response import dump_json, json_response
from mllama_cli.serving.ollama.fields import Options
from mllama_cli.serving.service import Service
from mllama_cli.serving.tokens import FINISH_REASONS, token_entry

Json = dict[str, Any]


@dataclass
class _Piece:
    """What came since the last line. ``stats`` are set in the last one."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    stats: GenerationStats | None = None


@dataclass(frozen=True)
class Reply:
    """The answer to one HTTP request.

    Attributes:
        write: returns the fields that hold a piece of the answer's text.
        context: returns what the last object has besides, from the ids of the answer's tokens.
        start: when the request came, by time.perf_counter.
    """

    service: Service
    options: Options
    inputs: ModelInputs
    sampling: Sampling
    write: Callable[[str], Json]
    start: float
    context: Callable[[list[int]], Json] | None = None

    async def respond(self, request: Request) -> Response:
        """Return the response. Raise ClientDisconnect if the client leaves before its answer is complete."""
        self.service.keep(self.options.keep_alive)
        if self.options.stream:
            return StreamResponse(self._stream(), "application/x-ndjson")
        async with watch(request):
            return json_response(await self._whole())

    async def _whole(self) -> Json:
        text, tokens = "", list[Token]()
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                text += piece.text
                tokens += piece.tokens
                if piece.stats is not None:
                    return self._last(text, tokens, piece.stats, self._logprobs(tokens))
        raise AssertionError("an answer ended without its statistics")

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        seen: list[Token] = []
        begun = False
        try:
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    seen += piece.tokens
                    line = b""
                    if piece.text or (piece.tokens and self.sampling.logprobs is not None):
                        chunk = {**self._envelope(), **self.write(piece.text), "done": False}
                        line += dump_json({**chunk, **self._logprobs(piece.tokens)}) + b"\n"
                    if piece.stats is not None:
                        line += dump_json(self._last("", seen, piece.stats, {})) + b"\n"
                    if line:
                        begun = True
                        yield line
        except MllamaError as error:
            if not begun:
                raise
            yield dump_json(ollama_error(error)) + b"\n"

    async def _pieces(self) -> AsyncGenerator[_Piece, None]:
        async with aclosing(self.service.answers([(self.inputs, self.sampling)])) as batches:
            async for batch in batches:
                piece = _Piece()
                for _, event in batch:
                    if isinstance(event, Token):
                        piece.text += event.text
                        piece.tokens.append(event)
                    elif isinstance(event, GenerationStats):
                        piece.stats = event
                yield piece

    def _envelope(self) -> Json:
        return envelope(self.options.model or self.service.names.main)

    def _last(self, text: str, tokens: list[Token], stats: GenerationStats, more: Json) -> Json:
        return {
            **self._envelope(),
            **self.write(text),
            "done": True,
            "done_reason": FINISH_REASONS[stats.finish_reason],
            **(self.context([token.id for token in tokens]) if self.context else {}),
            "total_duration": nanoseconds(time.perf_counter() - self.start),
            "load_duration": nanoseconds(stats.load_seconds),
            "prompt_eval_count": stats.prompt_tokens,
            "prompt_eval_duration": nanoseconds(stats.encode_seconds + stats.prefill_seconds),
            "eval_count": stats.completion_tokens,
            "eval_duration": nanoseconds(stats.decode_seconds),
            **more,
        }

    def _logprobs(self, tokens: list[Token]) -> Json:
        if self.sampling.logprobs is None:
            return {}
        entries = [token_entry(self.service.engine.processor.tokenizer, token) for token in tokens]
        for entry in entries:
            if not entry["top_logprobs"]:
                del entry["top_logprobs"]
        return {"logprobs": entries}


def envelope(model: str) -> Json:
    """Return what each object of an answer begins with."""
    return {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


async def nothing_asked(service: Service, options: Options, write: Callable[[str], Json]) -> Response:
    """Answer a request without a prompt, which in ollama loads the model, or unloads it if ``keep_alive`` is 0."""
    unloads = options.keep_alive == 0
    service.keep(options.keep_alive)
    await (service.unload() if unloads else service.load())
    model = options.model or service.names.main
    reason = "unload" if unloads else "load"
    return json_response({**envelope(model), **write(""), "done": True, "done_reason": reason})
