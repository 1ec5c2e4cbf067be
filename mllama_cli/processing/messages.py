"""Convert JSON in OpenAI's and transformers' chat formats to a Conversation."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from mllama_cli.core.conversation import Conversation, ImagePart, Message, Part, Role, TextPart
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.processing.images import encode_image
from mllama_cli.processing.sources import decode_base64, read_image
from mllama_cli.system.files import expanded
from mllama_cli.system.json_file import parse_json
from mllama_cli.system.text_file import read_file, read_stream

Reader = Callable[[str | Path], ImagePart]

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image", "image_url", "input_image")
_JSON_HINT = 'Expected: [{"role": "user", "content": "..."}, ...], content a string or a list of text and image parts.'
_TEXT_HINT = 'Expected: {"type": "text", "text": "..."}'
_IMAGE_HINT = (
    'Expected: {"type": "image", "path": ...} with "path", "url" or "base64", '
    'or {"type": "image_url", "image_url": {"url": ...}}'
)


def load_messages(
    source: str | Path, stdin: BinaryIO | None = None, *, read: Reader = read_image, to_answer: bool = True
) -> Conversation:
    """Return the conversation in a JSON file, or on ``stdin`` if ``source`` is "-".

    Relative image paths in it are relative to the current folder. Raises UsageError for a file that is missing, not
    JSON, or not in the form that ``parse_messages`` expects.
    """
    name = "stdin" if source == "-" else str(source)
    data = read_stream(stdin or sys.stdin.buffer, name) if source == "-" else read_file(expanded(name))
    if not data.strip():
        raise UsageError(f"{name} is empty, where JSON messages were expected", _JSON_HINT)
    lines_hint = "JSON Lines are not supported: wrap the messages in [ ]."
    return parse_messages(parse_json(data, name, hint=_JSON_HINT, lines_hint=lines_hint), read, to_answer=to_answer)


def parse_messages(data: object, read: Reader = read_image, *, to_answer: bool = True) -> Conversation:
    """Return a list of {role, content}, or an object with such a list under "messages", as a Conversation.

    Args:
        data: content is a string or a list of parts. A text part is {"type": "text" or "input_text", "text"}. An image
            part is {"type": "image_url" or "input_image", "image_url"} with a string or {"url"}, or {"type": "image"}
            with one of "url", "path", "image" (as ``read`` takes them; "image" may also be a PIL image or bytes),
            "base64" or "data" (the file's bytes); "name" is what the image is called where its bytes are given.
            "developer" is another name for system.
        read: gets the image behind a path or URL.
        to_answer: require that the last message is the user's.

    Raises UsageError with the position, as in messages[2].content[0], and what was expected there. Errors of ``read``
    keep their type and get the position too.
    """
    if isinstance(data, dict):
        if "messages" not in data:
            raise UsageError('the object has no "messages"', _JSON_HINT)
        data = data["messages"]
    if not isinstance(data, list):
        raise UsageError(f"messages must be a list, not {_kind(data)}", _JSON_HINT)
    if not data:
        raise UsageError("there are no messages", _JSON_HINT)
    messages = tuple(_message(item, f"messages[{index}]", read) for index, item in enumerate(data))
    if to_answer and messages[-1].role != "user":
        raise UsageError(
            f"messages[{len(messages) - 1}], the last one, is from the {messages[-1].role}",
            "The last message must be the user's: it is the one that is answered.",
        )
    return Conversation(messages)


def _message(item: object, where: str, read: Reader) -> Message:
    if not isinstance(item, dict):
        raise UsageError(f"{where} must be an object, not {_kind(item)}", _JSON_HINT)
    for key in ("role", "content"):
        if key not in item:
            raise UsageError(f'{where} has no "{key}"', _JSON_HINT)
    role = _ROLES.get(item["role"]) if isinstance(item["role"], str) else None
    if role is None:
        raise UsageError(f"{where}: role {item['role']!r} is not supported", "Roles are system, user and assistant.")
    content = item["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        raise UsageError(f"{where}.content must be a string or a list of parts, not {_kind(content)}", _JSON_HINT)
    if not content:
        raise UsageError(f"{where}.content is empty", _JSON_HINT)
    parts = tuple(_part(part, f"{where}.content[{index}]", read) for index, part in enumerate(content))
    message = Message(role, parts)
    if message.images and role != "user":
        raise UsageError(f"{where}: a picture in a message of the {role}", "Pictures belong in the user's messages.")
    return message


def _part(part: object, where: str, read: Reader) -> Part:
    if not isinstance(part, dict):
        raise UsageError(f"{where} must be an object, not {_kind(part)}", _TEXT_HINT)
    kind = part.get("type")
    if kind in _TEXT_TYPES:
        if not isinstance(part.get("text"), str):
            raise UsageError(f'{where} has no string "text"', _TEXT_HINT)
        return TextPart(_valid_text(part["text"], where))
    if kind not in _IMAGE_TYPES:
        raise UsageError(f"{where}: part of type {kind!r} is not supported", "Types are text, image and image_url.")
    try:
        return _image(part, where, read)
    except MllamaError as error:
        if error.message.startswith(where):
            raise
        raise type(error)(f"{where}: {error.message}", error.hint) from error


def _valid_text(text: str, where: str) -> str:
    """Return ``text``. Raise UsageError for half a surrogate pair, which JSON allows but no tokenizer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where}: half a surrogate pair at character {error.start}", "Write the whole character, or leave it out."
        ) from error
    return text


def _image(part: dict[Any, Any], where: str, read: Reader) -> ImagePart:
    keys = ("url", "path", "image", "base64", "data") if part["type"] == "image" else ("image_url",)
    given = [key for key in keys if part.get(key) is not None]
    if len(given) != 1:
        what = "names its picture more than once" if given else "names no picture"
        raise UsageError(f"{where} {what}", _IMAGE_HINT)
    key, value = given[0], part[given[0]]
    label = name if isinstance(name := part.get("name"), str) and name else where
    if key == "image_url" and isinstance(value, dict):
        key, value = "image_url.url", value.get("url")
    if key == "image" and isinstance(value, Image.Image):
        return encode_image(value, label)
    if key in ("image", "data") and isinstance(value, bytes):
        return ImagePart(value, label)
    if key in ("path", "image") and isinstance(value, Path):
        return read(value)
    if not isinstance(value, str):
        raise UsageError(f'{where}: "{key}" must be a string, not {_kind(value)}', _IMAGE_HINT)
    if value == "-":
        raise UsageError(f'{where}: "{key}" cannot be stdin', "Give a path or a URL, or the bytes in base64.")
    is_data_url = value[:5].lower() == "data:"
    if key in ("base64", "data") and not is_data_url:
        return ImagePart(decode_base64(value, where), label)
    image = read(value)
    return replace(image, name=label) if is_data_url else image


def _kind(value: object) -> str:
    """Return JSON's name of the type of ``value``."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
