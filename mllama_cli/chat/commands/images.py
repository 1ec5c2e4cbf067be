"""Slash commands for images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mllama_cli.chat.commands.command import Command, require
from mllama_cli.chat.dialogue import chip
from mllama_cli.chat.dropped_paths import find_images
from mllama_cli.chat.shell import Shell
from mllama_cli.core.errors import UsageError

if TYPE_CHECKING:
    from mllama_cli.processing.prepared import PreparedImage


def _image(shell: Shell, argument: str) -> None:
    require(argument, "image", "a path or a URL")
    # Paths as a terminal pastes them: quoted, escaped, several at once. Anything else is one path with spaces.
    found = find_images(argument)
    for source in [argument] if found.text.strip() or not found.paths else found.paths:
        _note_attached(shell, shell.attach(source))


def _paste(shell: Shell, argument: str) -> None:
    from mllama_cli.processing.clipboard import read_clipboard_image

    _note_attached(shell, shell.attach_image(read_clipboard_image()))


def _note_attached(shell: Shell, image: "PreparedImage") -> None:
    shell.terminal.note(f"Attached {chip(image)}. Now ask about it.")


def _images(shell: Shell, argument: str) -> None:
    waiting, asked = shell.dialogue.attachments, shell.dialogue.conversation.images
    for number, image in enumerate(waiting, 1):
        shell.terminal.note(f"{number}. {chip(image)} (sent with your next message)")
    for part in asked:
        shell.terminal.note(f"-  {part.name} (in the conversation)")
    if not waiting and not asked:
        shell.terminal.note("No images. /image PATH attaches one.")


def _detach(shell: Shell, argument: str) -> None:
    waiting = shell.dialogue.attachments
    if not waiting:
        raise UsageError("No image is attached", "/image PATH attaches one.")
    if argument == "all" or (not argument and len(waiting) == 1):
        detached = list(waiting)
    elif _is_number(argument, waiting):
        detached = [waiting[int(argument) - 1]]
    else:
        raise UsageError(f"/detach needs a number from 1 to {len(waiting)}, or all", "/images lists them.")
    for image in detached:
        waiting.remove(image)
        shell.terminal.note(f"Detached {chip(image)}.")


def _preview(shell: Shell, argument: str) -> None:
    waiting, asked = shell.dialogue.attachments, shell.dialogue.conversation.images
    if argument in ("on", "off"):
        shell.display.preview = argument == "on"
        shell.terminal.note(f"Previews are {argument}.")
    elif argument and not _is_number(argument, waiting):
        raise UsageError("/preview takes the number of an attached image, on or off", "/images lists them.")
    elif waiting:
        shell.show_image(waiting[int(argument) - 1 if argument else -1], large=True)
    elif asked:
        shell.show_image(shell.dialogue.prepare(asked[-1]), large=True)
    else:
        raise UsageError("There is no image to show", "/image PATH attaches one.")


def _is_number(argument: str, waiting: Sequence[object]) -> bool:
    return argument.isdigit() and 1 <= int(argument) <= len(waiting)


IMAGE_COMMANDS = (
    Command(("image", "attach"), "PATH|URL", "image", "Attach an image to your next message.", _image),
    Command(("paste",), "", "none", "Attach the image in the clipboard.", _paste),
    Command(("images",), "", "none", "List attached images.", _images),
    Command(("detach",), "N", "number", "Remove an attached image.", _detach),
    Command(("preview",), "[N|on|off]", "number", "Show an image enlarged; turn thumbnails on or off.", _preview),
)
