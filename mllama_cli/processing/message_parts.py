"""Convert the parts of messages, in OpenAI's, ollama's and transformers' formats; name keys that would be lost."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from mllama_cli.core.conversation import ImagePart, Part, TextPart
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.core.filetypes import document_format
from mllama_cli.core.selection import split_selection
from mllama_cli.processing.images import encode_image
from mllama_cli.processing.sources import INLINE_NAMES, decode_base64, is_base64_picture

Reader = Callable[[str | Path], tuple[ImagePart, ...]]
"""Returns the images that a source means: one, or the pages or frames of a document."""

_TEXT_TYPES = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_IMAGE_TYPES = ("image", "image_url", "input_image", "file", "input_file", "video", "video_url", "input_video")
_IMAGE_KEYS = (
    "url", "path", "image", "image_url", "base64", "data", "source", "file", "file_data", "video", "video_url",
)  # fmt: skip
_INNER_KEYS = {"image_url": "url", "video_url": "url", "file": "file_data"}
"""Keys of objects that some formats have around the value."""
_TEXT_HINT = 'Expected: {"type": "text", "text": "..."}'
_IMAGE_HINT = (
    'Expected: {"type": "image", "path": ...} with "path", "url" or "base64", '
    'or {"type": "image_url", "image_url": {"url": ...}}'
)
_CONTENT_WORDS = re.compile(
    "(?:image|img|pic|picture|photo|screenshot|frame|pixel|attachment|attach|file|document|doc|audio|voice|video|media"
    "|url|uri|path|base64|b64|blob|bytes|data|content|text|input|part|prompt|body|context|instruction|suffix|system)s?"
)
_ABOUT = ("type", "tokens", "count", "length", "fingerprint", "time", "status", "details", "detail")
"""Last words of keys that only describe content: content_type, prompt_tokens."""
_HARMLESS = (
    "reasoning_content",
    "thinking_content",
    "encrypted_content",
    "content_filter_results",
    "prompt_filter_results",
)


_DATA_URLS = ("data:image/", "data:video/", "data:application/pdf")


def check_lost(item: Mapping[Any, Any], known: Collection[str], where: str) -> None:
    """Raise UsageError for a key that is neither ``known`` nor harmless: the model would answer without its content.

    A key may hold content by its name ("attachments", "audio_url") or by what is in it (a picture).
    """
    for key, value in item.items():
        if key in known or value is None or isinstance(value, bool | int | float) or not value:
            continue
        words = re.findall("[a-z0-9]+", re.sub("([a-z0-9])([A-Z])", r"\1_\2", str(key)).lower())
        about = "_".join(words) in _HARMLESS or words[-1:] in [[word] for word in _ABOUT]
        named = not about and any(map(_CONTENT_WORDS.fullmatch, words))
        if named or _holds_picture(value):
            raise UsageError(
                f"{where}: the model would not see what is in {str(key)[:50]!r}",
                'Put text and pictures into "content", as parts (or base64 pictures into "images"), or leave it out.',
            )


def _holds_picture(value: Any, depth: int = 8) -> bool:
    if isinstance(value, str):
        return value.lstrip().lower().startswith(_DATA_URLS) or is_base64_picture(value[:400])
    if depth and isinstance(value, Mapping):
        value = list(value.values())
    return bool(depth) and isinstance(value, list) and any(_holds_picture(each, depth - 1) for each in value)


def read_part(part: object, where: str, read: Reader) -> tuple[Part, ...]:
    """Return a part of a message's content, which a document makes several.

    Raise UsageError, or the errors of ``read``, with the place.
    """
    if not isinstance(part, dict):
        raise UsageError(f"{where} must be an object, not {kind_of(part)}", _TEXT_HINT)
    kind = part.get("type")
    if isinstance(kind, str) and (key := _TEXT_TYPES.get(kind)):
        if not isinstance(part.get(key), str):
            raise UsageError(f'{where} has no string "{key}"', _TEXT_HINT)
        check_lost(part, ("type", key), where)
        return (TextPart(valid_text(part[key], where)),)
    if kind not in _IMAGE_TYPES:
        raise UsageError(
            f"{where}: part of type {kind!r} is not supported", "Types are text, image, image_url, file and video_url."
        )
    given = [key for key in _IMAGE_KEYS if part.get(key) is not None]
    if len(given) != 1:
        what = "names its picture more than once" if given else "names no picture"
        raise UsageError(f"{where} {what}", _IMAGE_HINT)
    check_lost(part, ("type", "name", "filename", *given), where)
    key, value = given[0], part[given[0]]
    named = part.get("name") or part.get("filename")
    if (inner := _INNER_KEYS.get(key)) and isinstance(value, dict):
        if key == "file":
            check_lost(value, (inner, "filename"), where)
        named = named or value.get("filename")
        key, value = f"{key}.{inner}", value.get(inner)
    elif key == "source" and isinstance(value, dict):  # Anthropic's
        inner = "data" if value.get("data") is not None else "url"
        key, value = f"source.{inner}", value.get(inner)
    label = named if isinstance(named, str) and named else where
    return read_picture(value, key, where, read, label)


def read_picture(value: object, key: str, where: str, read: Reader, label: str) -> tuple[ImagePart, ...]:
    """Return the picture that is the value of ``key``, or those of a document.

    ``label`` names it if its bytes are given. Raise UsageError, or the errors of ``read``, with the place.
    """
    try:
        return _picture(value, key, where, read, label)
    except MllamaError as error:
        if error.message.startswith(where):
            raise
        raise type(error)(f"{where}: {error.message}", error.hint) from error


def _picture(value: object, key: str, where: str, read: Reader, label: str) -> tuple[ImagePart, ...]:
    leaf = key.rpartition(".")[2]
    if leaf == "image" and isinstance(value, Image.Image):
        return (encode_image(value, label),)
    if leaf in ("image", "data", "images") and isinstance(value, bytes):
        return (ImagePart(value, label),)
    if leaf in ("path", "image", "images", "video", "file") and isinstance(value, Path):
        return read(value)
    if not isinstance(value, str):
        raise UsageError(f'{where}: "{key}" must be a string, not {kind_of(value)}', _IMAGE_HINT)
    if value.strip() == "-":
        raise UsageError(f'{where}: "{key}" cannot be stdin', "Give a path or a URL, or the bytes in base64.")
    if leaf in ("base64", "data", "file_data") and value.lstrip()[:5].lower() != "data:":
        data = decode_base64(value, where)
        if document_format(data) is None:
            return (ImagePart(data, label),)
        value = f"data:;base64,{value}"
    return tuple(_labelled(image, label) for image in read(value))


def _labelled(image: ImagePart, label: str) -> ImagePart:
    """Return an image with ``label`` where its name is that of data that has none; a page keeps its number."""
    name, selection = split_selection(image.name)
    if name not in INLINE_NAMES:
        return image
    return replace(image, name=f"{label}#{selection}" if selection else label)


def valid_text(text: str, where: str) -> str:
    """Return ``text``. Raise UsageError for half a surrogate pair, which JSON allows but no tokenizer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where}: half a surrogate pair at character {error.start}", "Write the whole character, or leave it out."
        ) from error
    return text


def kind_of(value: object) -> str:
    """Return JSON's name of the type of ``value``."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
