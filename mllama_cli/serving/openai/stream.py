"""Answer as one JSON object or as a stream of server-sent events."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import GenerationStats
from mllama_cli.serving.answer import EngineRequest
from mllama_cli.serving.connection import StreamResponse, watch
from mllama_cli.serving.errors import openai_error
from mllama_cli.serving.json_response import dump_json, json_response
from mllama_cli.serving.openai.choices import Piece, pieces_of, usage_of
from mllama_cli.serving.openai.fields import Options
from mllama_cli.serving.service import Service

Json = dict[str, Any]


class Form(Protocol):
    """How an endpoint writes its choices. ``index`` is that of the choice."""

    @property
    def id_prefix(self) -> str: ...

    @property
    def whole_object(self) -> str: ...

    @property
    def chunk_object(self) -> str: ...

    def choice(self, index: int, piece: Piece) -> Json:
        """Return a whole answer."""

    def opening(self, index: int) -> Json | None:
        """Return what begins the stream of an answer."""

    def deltas(self, index: int, piece: Piece) -> list[Json]:
        """Return what a piece adds to the stream of an answer."""


@dataclass(frozen=True)
class Reply:
    """The answer to one HTTP request: ``n`` choices for each prompt, in the order of the prompts."""

    service: Service
    requests: Sequence[EngineRequest]
    form: Form
    options: Options

    async def respond(self, request: Request) -> Response:
        """Return the response. Raise ClientDisconnect if the client leaves before its answer is complete."""
        if self.options.stream:
            return StreamResponse(self._stream(), "text/event-stream; charset=utf-8")
        async with watch(request):
            return json_response(await self._whole())

    async def _whole(self) -> Json:
        answers = {index: Piece() for index in range(len(self.requests))}
        stats: dict[int, GenerationStats] = {}
        async with aclosing(self.service.answers(self.requests)) as batches:
            async for batch in batches:
                for index, event in batch:
                    answers[index].add(event)
                    if isinstance(event, GenerationStats):
                        stats[index] = event
        choices = [self.form.choice(index, piece) for index, piece in answers.items()]
        return {**self._envelope(self.form.whole_object), "choices": choices, "usage": usage_of(stats, self.options.n)}

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        envelope = self._envelope(self.form.chunk_object)
        unknown_usage: Json = {"usage": None} if self.options.include_usage else {}

        def chunk(choice: Json) -> bytes:
            return _event({**envelope, "choices": [choice], **unknown_usage})

        stats: dict[int, GenerationStats] = {}
        opened: set[int] = set()
        try:
            async with aclosing(self.service.answers(self.requests)) as batches:
                async for batch in batches:
                    written: list[bytes] = []
                    stats.update((index, event) for index, event in batch if isinstance(event, GenerationStats))
                    for index, piece in pieces_of(batch).items():
                        if index not in opened:
                            opened.add(index)
                            opening = self.form.opening(index)
                            written += [chunk(opening)] if opening is not None else []
                        written += map(chunk, self.form.deltas(index, piece))
                    if written:
                        yield b"".join(written)
            if self.options.include_usage:
                yield _event({**envelope, "choices": [], "usage": usage_of(stats, self.options.n)})
        except MllamaError as error:
            if not opened:
                raise
            yield _event(openai_error(error))
        yield b"data: [DONE]\n\n"

    def _envelope(self, kind: str) -> Json:
        return {
            "id": f"{self.form.id_prefix}{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.options.model or self.service.names.main,
        }


def _event(data: Json) -> bytes:
    return b"data: " + dump_json(data) + b"\n\n"
