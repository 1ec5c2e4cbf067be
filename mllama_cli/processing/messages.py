"""Convert JSON in OpenAI's, ollama's and transformers' chat formats to a Conversation."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mllama_cli.core.conversation import Conversation, Message, Part, Role, TextPart
from mllama_cli.core.errors import UsageError
from mllama_cli.core.sampling import SETTABLE, parameter_name
from mllama_cli.core.tool_calls import read_calls
from mllama_cli.processing.documents import read_images
from mllama_cli.processing.message_parts import Reader, check_lost, kind_of, read_part, read_picture, valid_text
from mllama_cli.system.files import expanded
from mllama_cli.system.json_file import parse_json
from mllama_cli.system.text_file import read_file, read_stream

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "ipython": "tool",
    "function": "tool",
}
_MESSAGE_KEYS = (
    "role", "content", "images", "refusal", "tool_calls", "function_call", "tool_call_id", "name", "tool_name",
)  # fmt: skip
_ABOUT_KEYS = (
    "messages", "options", "model", "stream", "stream_options", "n", "user", "store", "metadata", "keep_alive",
    "id", "object", "name", "title", "created", "updated", "settings",
)  # fmt: skip
"""Keys of a request, or of a chat that `mllama history export` wrote, that change nothing here."""
_MAX_VALUES = 100_000
"""Values in the JSON of a conversation: some 30,000 messages."""
_JSON_HINT = 'Expected: [{"role": "user", "content": "..."}, ...], content a string or a list of text and image parts.'


@dataclass(frozen=True)
class MessagesRequest:
    """A conversation, and what else a whole request asks for.

    ``sampling`` has the parameters that we know, by our names; ``ignored`` the names of what has no effect here.
    """

    conversation: Conversation
    sampling: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def load_request(
    source: str | Path, stdin: BinaryIO | None = None, *, read: Reader = read_images, to_answer: bool = True
) -> MessagesRequest:
    """Return the request in a JSON file, or on ``stdin`` if ``source`` is "-".

    Relative image paths in it are relative to the current folder. Raises UsageError for a file that is missing, not
    JSON, or not in the form that ``parse_request`` expects.
    """
    return parse_request(_load_json(source, stdin), read, to_answer=to_answer)


def _load_json(source: str | Path, stdin: BinaryIO | None) -> object:
    name = "stdin" if source == "-" else str(source)
    data = read_stream(stdin or sys.stdin.buffer, name) if source == "-" else read_file(expanded(name))
    if not data or data.isspace():
        raise UsageError(f"{name} is empty, where JSON messages were expected", _JSON_HINT)
    lines_hint = "JSON Lines are not supported: wrap the messages in [ ]."
    return parse_json(data, name, hint=_JSON_HINT, lines_hint=lines_hint, max_values=_MAX_VALUES)


def load_messages(
    source: str | Path, stdin: BinaryIO | None = None, *, read: Reader = read_images, to_answer: bool = True
) -> Conversation:
    """Return the conversation alone of ``load_request``."""
    return load_request(source, stdin, read=read, to_answer=to_answer).conversation


def parse_messages(data: object, read: Reader = read_images, *, to_answer: bool = True) -> Conversation:
    """Return the conversation alone of ``parse_request``."""
    return parse_request(data, read, to_answer=to_answer).conversation


def parse_request(data: object, read: Reader = read_images, *, to_answer: bool = True) -> MessagesRequest:
    """Return a list of {role, content}, or a request with such a list under "messages".

    Args:
        data: content is a string or a list of parts. A text part is {"type": "text" or "input_text", "text"}. An image
            part has type "image", "image_url" or "input_image" and one of "url", "path", "image" (as ``read`` takes
            them; "image" may also be a PIL image or bytes), "image_url" with a string or {"url"}, "base64" or "data"
            (the file's bytes); "name" is what the image is called where its bytes are given. A document or video may
            also have type "file" with {"file_data", "filename"}, or "video_url" with {"url"}. A message may have
            ollama's "images", a list of paths or base64, which come before its text. "developer" is another name for
            system, "ipython" and "function" are for tool. System messages without text are left out.
        read: gets the image behind a path or URL.
        to_answer: require that the last message can be answered, or gone on with if it is the assistant's.

    Raises UsageError with the position, as in messages[2].content[0], and what was expected there, also for an unknown
    key whose content would be lost. Errors of ``read`` keep their type and get the position too.
    """
    request: Mapping[str, Any] = {}
    if isinstance(data, dict):
        if "messages" not in data:
            raise UsageError('the object has no "messages"', _JSON_HINT)
        request, data = data, data["messages"]
    if not isinstance(data, list):
        raise UsageError(f"messages must be a list, not {kind_of(data)}", _JSON_HINT)
    sampling, ignored = _settings(request)
    read_all = [_message(item, f"messages[{index}]", read) for index, item in enumerate(data)]
    conversation = Conversation(tuple(message for message in read_all if message.parts or message.role != "system"))
    if not conversation.messages:
        raise UsageError("there are no messages", _JSON_HINT)
    if to_answer:
        conversation.require_answerable()
    return MessagesRequest(conversation, sampling, ignored)


def _settings(request: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the sampling parameters of a request, and the names of what is ignored."""
    options = request.get("options")
    settings = {**request, **(options if isinstance(options, dict) else {})}  # ollama's are in an object of their own
    sampling: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for key, value in settings.items():
        if (name := parameter_name(str(key))) not in SETTABLE:
            others[key] = value
        elif value is not None and value != []:
            sampling[name] = SETTABLE[name].converted(value, f"the request's {key}")
    # OpenAI's response_format may hold a schema, which describes the answer: it is not content.
    check_lost(others, (*_ABOUT_KEYS, "tools", "functions", "format", "response_format"), "the request")
    ignored = (key for key, value in others.items() if key not in _ABOUT_KEYS and value not in (None, False, [], {}))
    return sampling, tuple(ignored)


def _message(item: object, where: str, read: Reader) -> Message:
    if not isinstance(item, dict):
        raise UsageError(f"{where} must be an object, not {kind_of(item)}", _JSON_HINT)
    check_lost(item, _MESSAGE_KEYS, where)
    role = _ROLES.get(item["role"]) if isinstance(item.get("role"), str) else None
    if "role" not in item:
        raise UsageError(f'{where} has no "role"', _JSON_HINT)
    if role is None:
        raise UsageError(
            f"{where}: role {item['role']!r} is not supported", "Roles are system, user, assistant and tool."
        )
    images, calls = item.get("images") or [], item.get("tool_calls") or []
    if item.get("function_call"):  # OpenAI's older form of a single call
        calls = [{"function": item["function_call"]}]
    if "content" not in item and not images and not calls:
        raise UsageError(f'{where} has no "content"', _JSON_HINT)
    parts = (*_images(images, where, read), *_content(item, where, read))
    # Exports of other tools have empty turns: of a user's there is nothing to answer, the others' are kept.
    if not parts and role == "user":
        raise UsageError(f"{where}.content is empty", _JSON_HINT)
    if calls and role != "assistant":
        raise UsageError(f"{where}: a tool call in a message of the {role}", "Only the assistant calls tools.")
    try:
        tool_calls = read_calls(calls)
    except ValueError as error:
        raise UsageError(
            f"{where}.tool_calls {error}", 'Expected: [{"function": {"name": ..., "arguments": ...}}]'
        ) from error
    for call in tool_calls:
        valid_text(call.name + call.arguments + call.id, f"{where}.tool_calls")
    names = (item.get("name") or item.get("tool_name"), item.get("tool_call_id")) if role == "tool" else ("", "")
    name, call_id = (valid_text(each, where) if isinstance(each, str) else "" for each in names)
    message = Message(role, parts, tool_calls, name, call_id)
    if message.images and role != "user":
        raise UsageError(f"{where}: a picture in a message of the {role}", "Pictures belong in the user's messages.")
    return message


def _images(images: object, where: str, read: Reader) -> list[Part]:
    """Return ollama's list of pictures."""
    if not isinstance(images, list):
        raise UsageError(f"{where}.images must be a list, not {kind_of(images)}", "Expected: paths, or base64.")
    places = [f"{where}.images[{index}]" for index in range(len(images))]
    read_all = (read_picture(image, "images", place, read, place) for image, place in zip(images, places, strict=True))
    return [image for several in read_all for image in several]


def _content(item: dict[str, Any], where: str, read: Reader) -> list[Part]:
    content = item.get("content")
    if content is None:
        content = item.get("refusal") or ""
    if isinstance(content, str):
        return [TextPart(valid_text(content, f"{where}.content"))] if content else []
    if not isinstance(content, list):
        raise UsageError(f"{where}.content must be a string or a list of parts, not {kind_of(content)}", _JSON_HINT)
    read_all = (read_part(part, f"{where}.content[{index}]", read) for index, part in enumerate(content))
    parts = [part for several in read_all for part in several]
    return [part for part in parts if part != TextPart("")] if item.get("role") in ("system", "developer") else parts
