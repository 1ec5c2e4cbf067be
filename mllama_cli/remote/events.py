"""Events and errors as lines of JSON, and back."""

import json
from typing import Any, get_args

from mllama_cli.core import errors
from mllama_cli.core.errors import EngineError, MllamaError
from mllama_cli.core.events import Event
from mllama_cli.core.text import one_line, shown, strip_control
from mllama_cli.remote.codec import from_json, to_json

_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}
_ERRORS: dict[str, type[MllamaError]] = {
    kind("").kind: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MllamaError)
}
HEARTBEAT = b"\n"
"""A line that says only that the engine is alive."""


def event_line(event: Event) -> bytes:
    """Return an event as one line of JSON."""
    return line({"event": type(event).__name__, **to_json(event)})


def error_fields(error: MllamaError) -> dict[str, Any]:
    """Return an error as ``read_error`` reads it, in the form of all JSON output."""
    return {"error": {"message": error.message, "hint": error.hint, "kind": error.kind}}


def line(data: dict[str, Any]) -> bytes:
    """Return an object as one line of ASCII, whatever is in its texts."""
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


def read_event(data: dict[str, Any]) -> Event:
    """Return the event of a line. Raise EngineError for what is not one."""
    kind = _KINDS.get(str(data.pop("event", None)))
    if kind is None:
        raise EngineError(f"The engine sent {shown(data)}, which is not an event", "Update mllama on both sides.")
    return from_json(kind, data, "The engine sent an event that cannot be read", EngineError)


def read_error(data: Any) -> MllamaError | None:
    """Return the error in an object; None if it has none. A kind that is not known is an MllamaError."""
    about = data.get("error") if isinstance(data, dict) else None
    if not isinstance(about, dict) or not isinstance(message := about.get("message"), str):
        return None
    hint = about.get("hint")
    kind = _ERRORS.get(str(about.get("kind")), MllamaError)
    return kind(one_line(message, 2000), strip_control(hint) if isinstance(hint, str) else "")
