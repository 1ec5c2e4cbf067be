"""Read the fields that OpenAI's endpoints share. Unknown fields are ignored, as clients send all kinds of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllama_cli.core.errors import UsageError
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.sampling import MAX_LOGPROBS, PARAMETERS, SETTABLE, parameter_name
from mllama_cli.core.text import shown
from mllama_cli.serving.errors import FieldError
from mllama_cli.serving.schemas import enforceable

Body = Mapping[str, Any]

MAX_CHOICES = 128
"""Answers of one request, over all its prompts."""

_NO_TOOLS = "Leave it out: Llama 3.2 Vision answers in text."


@dataclass(frozen=True)
class Options:
    """What a request asks for besides its prompt and its sampling."""

    model: str
    n: int
    stream: bool
    include_usage: bool


def read_options(body: Body) -> Options:
    """Return the common options. Raise FieldError for a wrong type, and for what is not supported."""
    for name in ("tools", "functions"):
        choice = body.get("tool_choice" if name == "tools" else "function_call")
        if body.get(name) and choice != "none":
            raise FieldError(name, f"{name} are not supported: this server calls no functions", _NO_TOOLS)
    streaming = body.get("stream_options")
    if streaming is not None and not isinstance(streaming, Mapping):
        raise FieldError("stream_options", f"stream_options must be an object, not {shown(streaming)}")
    return Options(
        model=_typed(body, "model", str, "a text") or "",
        n=read_count(body, "n", 1, MAX_CHOICES) or 1,
        stream=read_flag(body, "stream"),
        include_usage=read_flag(streaming or {}, "include_usage"),
    )


def read_sampling(body: Body) -> dict[str, Any]:
    """Return the sampling parameters of a request, by our names; log-probabilities are read by each endpoint."""
    sampling: dict[str, Any] = {}
    for key, value in body.items():
        name = parameter_name(key)
        if name not in SETTABLE or value is None:
            continue
        if name == "top_k" and value == -1:  # vLLM's "all"
            value = 0
        try:
            sampling[name] = SETTABLE[name].converted(value, key)
        except UsageError as error:
            raise FieldError(key, error.message, error.hint) from error
    if body.get("max_completion_tokens") is not None:  # the newer name counts
        sampling["max_tokens"] = body["max_completion_tokens"]
    if (bias := body.get("logit_bias")) is not None:
        sampling["logit_bias"] = _logit_bias(bias)
    if (grammar := _grammar(body.get("response_format"))) is not None:
        sampling["grammar"] = grammar
    return sampling


def read_count(body: Body, name: str, low: int, high: int) -> int | None:
    """Return a whole number from ``low`` to ``high``; None if it is not there."""
    value: int | None = _typed(body, name, int, "a whole number")
    if value is not None and not low <= value <= high:
        raise FieldError(name, f"{name} must be from {low} to {high}, not {shown(value)}")
    return value


def read_flag(body: Body, name: str) -> bool:
    """Return true or false; false if it is not there."""
    return bool(_typed(body, name, bool, "true or false"))


def read_top_logprobs(body: Body) -> int | None:
    """Return how many alternatives /v1/chat/completions is asked for, 0 for the chosen token alone; None for none."""
    asked, count = read_flag(body, "logprobs"), read_count(body, "top_logprobs", 0, MAX_LOGPROBS)
    if count and not asked:
        raise FieldError("top_logprobs", "top_logprobs needs logprobs", 'Add "logprobs": true.')
    return (count or 0) if asked else None


def _typed(body: Body, name: str, kind: type, words: str) -> Any:
    value = body.get(name)
    if value is not None and type(value) is not kind:
        raise FieldError(name, f"{name} must be {words}, not {shown(value)}")
    return value


def _grammar(form: Any) -> Grammar | None:
    """Return what ``response_format`` says that the answer must be; None for text. ``strict`` or not, it is kept to."""
    kind = form.get("type") if isinstance(form, Mapping) else None
    if form is None or kind == "text":
        return None
    if kind == "json_object":
        return Grammar.json_object()
    described = form.get("json_schema") if kind == "json_schema" else None
    if not isinstance(described, Mapping) or not isinstance(described.get("schema"), Mapping):
        raise FieldError(
            "response_format",
            f"response_format must be of the type text, json_object or json_schema, not {shown(form)}",
            'Expected: {"type": "json_schema", "json_schema": {"name": "...", "schema": {...}}}.',
        )
    return enforceable(described["schema"], "response_format")


def _logit_bias(value: Any) -> dict[int, float]:
    hint = 'Expected: {"128000": -100}, token ids with what is added to their logits.'
    if not isinstance(value, Mapping):
        raise FieldError("logit_bias", f"logit_bias must be an object, not {shown(value)}", hint)
    bias: dict[int, float] = {}
    for key, each in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise FieldError("logit_bias", f"logit_bias has a key that is not a token id: {shown(key)}", hint)
        if type(each) not in (int, float) or not -100 <= each <= 100:
            raise FieldError("logit_bias", f"logit_bias must add from -100 to 100, not {shown(each)}", hint)
        bias[int(key)] = float(each)
    PARAMETERS["logit_bias"].require(bias, "logit_bias")
    return bias
