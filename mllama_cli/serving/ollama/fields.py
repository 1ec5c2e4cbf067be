"""Read the fields that ollama's endpoints share. Unknown fields and options are ignored, as ollama does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllama_cli.core.duration import read_duration
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.sampling import MAX_LOGPROBS, SETTABLE, parameter_name
from mllama_cli.core.text import shown
from mllama_cli.serving.errors import FieldError
from mllama_cli.serving.schemas import enforceable

Body = Mapping[str, Any]

UNLIMITED = 2**31 - 1
"""max_tokens of an answer that only the context limits; ollama's num_predict of 0 or less."""


@dataclass(frozen=True)
class Options:
    """What a request asks for besides its prompt. ``sampling`` has our names of the parameters.

    ``keep_alive`` has the seconds that the model stays in memory afterwards, below zero for ever; None: as before.
    """

    model: str
    stream: bool
    sampling: Mapping[str, Any]
    keep_alive: float | None


def read_options(body: Body) -> Options:
    """Return the common options. Raise FieldError for a wrong type, and for what is not supported."""
    model = read_model(body)
    named = f'"{model}"' if model else "this model"
    if body.get("tools"):
        # Clients look for these words of ollama's, here and below, and then ask without.
        raise FieldError("tools", f"{named} does not support tools", "Leave tools out.")
    if body.get("think") not in (None, False, ""):
        raise FieldError("think", f"{named} does not support thinking", "Leave think out, or set it to false.")
    if read_text(body, "suffix"):
        raise FieldError("suffix", f"{named} does not support insert", "Leave suffix out.")
    stream = body.get("stream")
    if type(stream) not in (bool, type(None)):
        raise FieldError("stream", f"stream must be true or false, not {shown(stream)}")
    sampling = {**_sampling(body.get("options")), **_logprobs(body), **_format(body.get("format"))}
    return Options(model, stream is not False, sampling, _keep_alive(body.get("keep_alive")))


def read_model(body: Body) -> str:
    """Return the name of the model, which older clients call "name"; empty if it is not there."""
    return read_text(body, "model") or read_text(body, "name")


def read_text(body: Body, name: str) -> str:
    """Return a text; empty if it is not there."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise FieldError(name, f"{name} must be a text, not {shown(value)}")
    return value or ""


def read_list(body: Body, name: str) -> list[Any]:
    """Return a list; empty if it is not there."""
    value = body.get(name)
    if value is not None and not isinstance(value, list):
        raise FieldError(name, f"{name} must be a list, not {shown(value)}")
    return value or []


def _sampling(options: Any) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise FieldError("options", f"options must be an object, not {shown(options)}")
    sampling: dict[str, Any] = {}
    for key, value in options.items():
        name = parameter_name(key)
        if name not in SETTABLE:
            continue
        value = _as_ours(name, value)
        if value not in (None, []):
            sampling[name] = SETTABLE[name].converted(value, f"options.{key}")
    return sampling


def _as_ours(name: str, value: Any) -> Any:
    """Return a value as we write it, None for one that asks for nothing.

    Clients send whole numbers as 8.0, and stop as an empty text; ollama has values of its own for "all" and "none".
    """
    if name == "stop":
        return [each for each in value if each != ""] if isinstance(value, list) else value or None
    if SETTABLE[name].type is int and type(value) is float and value.is_integer():
        value = int(value)
    if type(value) not in (int, float):
        return value
    match name:
        case "temperature" if value < 0:
            return 0
        case "max_tokens" if value <= 0:
            return UNLIMITED
        case "seed" if value < 0:  # another one each time
            return None
        case "top_k" if value < 0:
            return 0
        case "top_p" if value == 0:  # the likeliest token alone
            return 1e-6
    return value


def _format(value: Any) -> dict[str, Grammar]:
    if value in (None, "", {}):
        return {}
    if value == "json":
        return {"grammar": Grammar.json_object()}
    if not isinstance(value, Mapping):
        raise FieldError("format", f'format must be "json" or a JSON schema, not {shown(value)}')
    return {"grammar": enforceable(value, "format")}


def _logprobs(body: Body) -> dict[str, int]:
    asked, count = body.get("logprobs"), body.get("top_logprobs")
    if type(asked) not in (bool, type(None)):
        raise FieldError("logprobs", f"logprobs must be true or false, not {shown(asked)}")
    if count is not None and (type(count) is not int or not 0 <= count <= MAX_LOGPROBS):
        raise FieldError("top_logprobs", f"top_logprobs must be from 0 to {MAX_LOGPROBS}, not {shown(count)}")
    return {"logprobs": count or 0} if asked else {}


def _keep_alive(value: Any) -> float | None:
    """Return the seconds that the model stays in memory after the answer; below zero it means for ever."""
    if value is None or value == "":
        return None
    try:
        return read_duration(value)
    except ValueError as error:
        raise FieldError(
            "keep_alive", f"keep_alive is not a duration: {shown(value)}", 'Expected: seconds, or a text such as "5m".'
        ) from error
