"""POST /v1/chat/completions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.processing.message_parts import Reader
from mllama_cli.processing.messages import parse_messages
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.serving.errors import FieldError
from mllama_cli.serving.openai.choices import Piece
from mllama_cli.serving.openai.fields import Body, Options, read_options, read_sampling, read_top_logprobs
from mllama_cli.serving.openai.stream import Json, Reply
from mllama_cli.serving.service import Service
from mllama_cli.serving.tokens import token_entry


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    conversation, asked, options = await service.read(request, parse)
    if options.model:
        service.names.require(options.model)
    sampling = service.sampling(**asked)
    inputs = await service.inputs(conversation)
    del conversation  # the files of its images, while the answer is awaited
    requests = [(inputs, each) for each in seeded(sampling, options.n)]
    form = ChatForm(service.engine.processor.tokenizer, with_logprobs=sampling.logprobs is not None)
    return await Reply(service, requests, form, options).respond(request)


def parse(body: Body, read_images: Reader) -> tuple[Conversation, dict[str, Any], Options]:
    """Return the conversation, the sampling parameters and the options of a request. Raise UsageError or ImageError."""
    if "messages" not in body:
        raise FieldError("messages", 'the request has no "messages"', 'Expected: [{"role": "user", "content": "..."}]')
    options = read_options(body)
    sampling = read_sampling(body)
    if (count := read_top_logprobs(body)) is not None:
        sampling["logprobs"] = count
    return parse_messages(body["messages"], read_images), sampling, options


def seeded(sampling: Sampling, n: int) -> Sequence[Sampling]:
    """Return the sampling of ``n`` answers to one prompt: a seed gives each one of its own, so that they differ."""
    if sampling.seed is None:
        return [sampling] * n
    return [replace(sampling, seed=_wrapped(sampling.seed + index)) for index in range(n)]


def _wrapped(seed: int) -> int:
    return seed if seed < 2**64 else seed - 2**64


@dataclass(frozen=True)
class ChatForm:
    """Choices with messages."""

    tokenizer: MllamaTokenizer
    with_logprobs: bool
    id_prefix: str = "chatcmpl-"
    whole_object: str = "chat.completion"
    chunk_object: str = "chat.completion.chunk"

    def choice(self, index: int, piece: Piece) -> Json:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(piece.tokens),
            "finish_reason": piece.finish_reason,
        }

    def opening(self, index: int) -> Json | None:
        return self._delta(index, {"role": "assistant", "content": ""})

    def deltas(self, index: int, piece: Piece) -> list[Json]:
        deltas = []
        if piece.text or piece.tokens:
            deltas.append({**self._delta(index, {"content": piece.text}), "logprobs": self._logprobs(piece.tokens)})
        if piece.finish_reason:
            deltas.append({**self._delta(index, {}), "finish_reason": piece.finish_reason})
        return deltas

    def _delta(self, index: int, delta: Json) -> Json:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, tokens: list[Token]) -> Json | None:
        if not self.with_logprobs:
            return None
        return {"content": [token_entry(self.tokenizer, token) for token in tokens], "refusal": None}
