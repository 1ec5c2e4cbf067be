"""Export saved chats: JSON that `mllama chat --messages` reads again, and Markdown for people.

JSON holds its images as data: URLs. So does Markdown on stdout; next to a file FILE.md, images are files in
``FILE_images/``, because editors choke on lines of 20 MB.
"""

import json
import os
import re
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from mllama_cli.chat.storage.saved import SavedChat, printable, short_name
from mllama_cli.core.conversation import ImagePart, Message, Part, TextPart
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.core.filetypes import image_suffix, media_type
from mllama_cli.core.text import replace_surrogates
from mllama_cli.system.files import exists, is_file, is_folder, resolved
from mllama_cli.system.safe_files import neighbor_name, replacing

JSON_SUFFIXES = (".json",)
MARKDOWN_SUFFIXES = (".md", ".markdown")

SPEAKERS = {"system": "System", "user": "You", "assistant": "Assistant", "tool": "Tool"}
"""Headings of messages by role."""

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


def speaker(message: Message) -> str:
    """Return the heading of a message: who says it, and of a tool's answer which tool."""
    return f"{SPEAKERS[message.role]} {message.name}".rstrip()


def export_json(saved: SavedChat) -> str:
    """Return ``export_record`` as JSON text, ending in a newline.

    ``load_messages`` reads the same conversation back, system prompt and image names included. It refuses lone
    surrogates and messages without parts, so those become U+FFFD and an empty text.
    """
    return replace_surrogates(json.dumps(export_record(saved), ensure_ascii=False, indent=2)) + "\n"


def export_record(saved: SavedChat) -> dict[str, object]:
    """Return a JSON object with what belongs to a chat, and its messages in OpenAI's format under "messages"."""
    return {
        "id": saved.id,
        "name": saved.name,
        "title": saved.title,
        "model": saved.model,
        "created": saved.created.isoformat(timespec="seconds"),
        "updated": saved.updated.isoformat(timespec="seconds"),
        "settings": saved.settings,
        "messages": [_message(message) for message in saved.whole],
    }


def export_markdown(saved: SavedChat, address: Callable[[ImagePart], str] | None = None) -> str:
    """Return a readable document: a heading for each turn, images in their places, ending in a newline.

    Args:
        address: returns the URL of an image; by default a data: URL.
    """
    about = f"{saved.model}, {saved.created:%Y-%m-%d %H:%M}"
    blocks = [f"# {_plain(saved.name or saved.title)}", f"*{_plain(about)}*"]
    for message in saved.whole:
        blocks += [f"## {_plain(speaker(message))}", *_blocks(message, address or data_url)]
    return replace_surrogates("\n\n".join(blocks)) + "\n"


def write_export(saved: SavedChat, path: Path, *, overwrite: bool = False) -> tuple[Path, ...]:
    """Write a chat to FILE.json or FILE.md, and the images of the latter to ``FILE_images/``.

    Each file is written atomically, the document last. Return the paths, the document first. Raise UsageError for
    another suffix, a missing folder, and a file or image folder that already exists (``overwrite`` replaces files of
    the same names instead), MllamaError for an OSError.
    """
    as_json = path.suffix.lower() in JSON_SUFFIXES
    if not as_json and path.suffix.lower() not in MARKDOWN_SUFFIXES:
        raise UsageError(f"{path} is neither .md nor .json", "The suffix chooses Markdown or JSON.")
    folder = path.with_name(neighbor_name(path.stem, "_images"))
    images = {} if as_json else {image.digest: image for image in saved.whole.images}
    files = {digest: f"{number}{image_suffix(image.data)}" for number, (digest, image) in enumerate(images.items(), 1)}
    try:
        _check_free(path, folder if images else None, overwrite)
        if images:
            folder.mkdir(exist_ok=True)
        for digest, image in images.items():
            _write(folder / files[digest], image.data)
        text = (
            export_json(saved)
            if as_json
            else export_markdown(saved, lambda image: f"{quote(folder.name, errors='replace')}/{files[image.digest]}")
        )
        _write(resolved(path), text.encode())  # a link that --force names is written through
    except OSError as error:
        raise MllamaError(
            f"{error.filename or path} cannot be written: {error.strerror or error}", "Choose another path."
        ) from error
    except ValueError as error:  # a name with a NUL
        raise UsageError(f"{path} is not a file name: {error}", "Choose another name.") from error
    return (path, *(folder / name for name in files.values()))


def data_url(image: ImagePart) -> str:
    """Return a data: URL that holds the image."""
    return f"data:{media_type(image.data)};base64,{b64encode(image.data).decode()}"


def _message(message: Message) -> dict[str, object]:
    record: dict[str, object] = {"role": message.role, "content": _content(message)}
    if message.tool_calls:
        record["tool_calls"] = [call.as_dict() for call in message.tool_calls]
    if message.name:
        record["name"] = message.name
    if message.call_id:
        record["tool_call_id"] = message.call_id
    return record


def _content(message: Message) -> object:
    if not message.parts and message.tool_calls:
        return None
    texts = [part for part in message.parts if isinstance(part, TextPart)]
    if len(message.parts) == len(texts) == 1 and texts[0].text:
        return texts[0].text
    return [_part(part) for part in message.parts or (TextPart(""),)]


def _part(part: Part) -> dict[str, object]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": data_url(part)}, "name": part.name}


def _blocks(message: Message, address: Callable[[ImagePart], str]) -> list[str]:
    blocks: list[str] = []
    for part in message.parts:
        if isinstance(part, ImagePart):
            blocks.append(f"![{_plain(short_name(part.name))}]({address(part)})")
        elif part.text.strip():
            blocks.append(_closed(part.text.strip("\n")))
    blocks += [_code(f"{call.name}({call.arguments})") for call in message.tool_calls]
    return blocks


def _code(text: str) -> str:
    """Return ``text`` as a code block, whatever backticks are in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _closed(text: str) -> str:
    """Close a code block left open by an answer that was stopped inside it; it would swallow the rest."""
    fence = ""
    for line in text.splitlines():
        match = _FENCE.fullmatch(line)
        if match is None:
            continue
        marks, rest = match.groups()
        if not fence:
            fence = marks if "`" not in rest or marks[0] == "~" else ""
        elif marks[0] == fence[0] and len(marks) >= len(fence) and not rest.strip():
            fence = ""
    return f"{text}\n{fence}" if fence else text


def _plain(text: str) -> str:
    """Escape ``text`` for Markdown, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", printable(text))


def _check_free(path: Path, folder: Path | None, overwrite: bool) -> None:
    if not is_folder(path.parent):
        raise UsageError(f"There is no folder {path.parent}", "Create it first, or choose another path.")
    if exists(path) and not is_file(path):
        raise UsageError(f"{path} is not a regular file", "Choose another name.")
    if folder is not None and os.path.lexists(folder) and (folder.is_symlink() or not is_folder(folder)):
        raise UsageError(f"{folder}, where the images go, is not a folder", "Choose another name.")
    for target in (path, folder):
        if target is not None and os.path.lexists(target) and not overwrite:
            raise UsageError(
                f"{target} already exists", "Choose another name; `mllama history export --force` overwrites it."
            )


def _write(path: Path, data: bytes) -> None:
    with replacing(str(path)) as file:
        file.write(data)
