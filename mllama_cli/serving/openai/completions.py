"""POST /v1/completions: prompts verbatim, without the chat template."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mllama_cli.core.events import Token
from mllama_cli.core.sampling import MAX_LOGPROBS
from mllama_cli.core.text import shown
from mllama_cli.processing.message_parts import Reader, valid_text
from mllama_cli.processing.processor import ModelInputs
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.serving.errors import FieldError
from mllama_cli.serving.openai.chat import seeded
from mllama_cli.serving.openai.choices import Piece
from mllama_cli.serving.openai.fields import (
    MAX_CHOICES,
    Body,
    Options,
    read_count,
    read_flag,
    read_options,
    read_sampling,
)
from mllama_cli.serving.openai.stream import Json, Reply
from mllama_cli.serving.service import Service
from mllama_cli.serving.tokens import finite, token_text

Prompt = str | tuple[int, ...]
"""Text, or the ids of its tokens."""

DEFAULT_TOKENS = 16
"""The longest answer unless the request says otherwise, by OpenAI's definition of this endpoint."""
_PROMPT_HINT = "Expected: a text, a list of texts, a list of token ids, or a list of such lists."


async def completions(request: Request) -> Response:
    """Go on with one or more prompts."""
    service: Service = request.app.state.service
    prompts, asked, options, echo = await service.read(request, parse)
    if options.model:
        service.names.require(options.model)
    sampling = service.sampling(**asked)
    tokenizer = service.engine.processor.tokenizer
    prepared = [await _inputs(service, prompt) for prompt in prompts]
    requests = [(inputs, each) for inputs in prepared for each in seeded(sampling, options.n)]
    echoed = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts] if echo else []
    texts = [text for text in echoed for _ in range(options.n)]
    return await Reply(service, requests, CompletionForm(tokenizer, sampling.logprobs, texts), options).respond(request)


def parse(body: Body, read_images: Reader) -> tuple[list[Prompt], dict[str, Any], Options, bool]:
    """Return prompts, sampling parameters, options, and whether to echo the prompts. Raise FieldError."""
    if body.get("suffix"):
        raise FieldError("suffix", "suffix is not supported", "Leave it out: this model only writes at the end.")
    options = read_options(body)
    if (best_of := read_count(body, "best_of", 1, MAX_CHOICES)) is not None and best_of != options.n:
        raise FieldError("best_of", "best_of is not supported unless it equals n", "Ask for n answers, and choose one.")
    prompts = _prompts(body.get("prompt"))
    if len(prompts) * options.n > MAX_CHOICES:
        raise FieldError("prompt", f"{len(prompts)} prompts with {options.n} answers each are more than {MAX_CHOICES}")
    sampling = {"max_tokens": DEFAULT_TOKENS, **read_sampling(body)}
    sampling["logprobs"] = read_count(body, "logprobs", 0, MAX_LOGPROBS)
    echo = read_flag(body, "echo")
    if echo and sampling["logprobs"] is not None:
        raise FieldError(
            "logprobs",
            "logprobs of an echoed prompt are not supported",
            "Leave out echo: log-probabilities are of generated tokens.",
        )
    return prompts, sampling, options, echo


def _prompts(value: Any) -> list[Prompt]:
    if isinstance(value, str):
        return [valid_text(value, "prompt")]
    if not isinstance(value, list) or not value:
        raise FieldError("prompt", f"prompt must be a text or a list, not {shown(value)}", _PROMPT_HINT)
    if all(type(each) is int for each in value):
        return [tuple(value)]
    return [_prompt(each, f"prompt[{index}]") for index, each in enumerate(value)]


def _prompt(value: Any, where: str) -> Prompt:
    if isinstance(value, str):
        return valid_text(value, where)
    if isinstance(value, list) and value and all(type(each) is int for each in value):
        return tuple(value)
    raise FieldError("prompt", f"{where} must be a text or a list of token ids, not {shown(value)}", _PROMPT_HINT)


async def _inputs(service: Service, prompt: Prompt) -> ModelInputs:
    if not isinstance(prompt, str):
        return service.token_inputs(prompt)
    inputs = await service.raw_inputs(prompt)
    if not inputs.ids:
        raise FieldError("prompt", "prompt is empty, so there is nothing to go on with", _PROMPT_HINT)
    return inputs


@dataclass(frozen=True)
class CompletionForm:
    """Choices with text, which begins with the prompt if ``echo`` has that of each choice.

    ``logprobs`` is the number of alternatives; None for no log-probabilities.
    """

    tokenizer: MllamaTokenizer
    logprobs: int | None
    echo: Sequence[str]
    id_prefix: str = "cmpl-"
    whole_object: str = "text_completion"
    chunk_object: str = "text_completion"
    _offsets: dict[int, int] = field(default_factory=dict)

    def choice(self, index: int, piece: Piece) -> Json:
        text = (self.echo[index] if self.echo else "") + piece.text
        return self._choice(index, text, piece, piece.finish_reason)

    def opening(self, index: int) -> Json | None:
        return self._choice(index, self.echo[index], Piece(), None) if self.echo else None

    def deltas(self, index: int, piece: Piece) -> list[Json]:
        if not (piece.text or piece.tokens or piece.finish_reason):
            return []
        return [self._choice(index, piece.text, piece, piece.finish_reason)]

    def _choice(self, index: int, text: str, piece: Piece, finish_reason: str | None) -> Json:
        logprobs = None if self.logprobs is None else self._logprobs(index, piece.tokens)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> Json:
        texts = [token_text(self.tokenizer, token.id) for token in tokens]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token.text)
        top = [
            {token_text(self.tokenizer, id_): finite(logprob) for id_, logprob in token.top_logprobs}
            for token in tokens
        ]
        return {
            "tokens": texts,
            "token_logprobs": [finite(token.logprob or 0.0) for token in tokens],
            "top_logprobs": top if self.logprobs else None,
            "text_offset": offsets,
        }
