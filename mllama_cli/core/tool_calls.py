"""Calls of functions in a conversation, as plain data; the chat template says how the model sees them."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A function that the assistant asked for. ``arguments`` is JSON text, as in OpenAI's format."""

    name: str
    arguments: str = "{}"
    id: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the call in OpenAI's format."""
        named = {"id": self.id} if self.id else {}
        return {**named, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def read_calls(value: Any) -> tuple[ToolCall, ...]:
    """Return a message's "tool_calls" in OpenAI's or ollama's format. Raise ValueError with what is wrong."""
    if not isinstance(value, list):
        raise ValueError("must be a list")
    return tuple(map(_read_call, value))


def _read_call(value: Any) -> ToolCall:
    function = value.get("function", value) if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str):
        raise ValueError("must hold functions, each with a name")
    arguments, id_ = function.get("arguments"), value.get("id")
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    return ToolCall(name, arguments, id_ if isinstance(id_, str) else "")
