"""Slash commands for images."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mllama_cli.chat.commands.command import Command, require
from mllama_cli.chat.dialogue import chip
from mllama_cli.chat.image_sources import typed_images
from mllama_cli.chat.shell import Shell
from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import as_number

if TYPE_CHECKING:
    from mllama_cli.processing.prepared import PreparedImage

MANY_IMAGES = 8
"""Above this number of images, /image asks."""


def _image(shell: Shell, argument: str) -> None:
    sources = typed_images(require(argument, "image", "a path or a URL"))
    if len(sources) > MANY_IMAGES and shell.source.choose(f"Attach {len(sources)} images? [y]es or [n]o", "yn") == "n":
        return
    _note_attached(shell, shell.attach(*sources))


def _crop(shell: Shell, argument: str) -> None:
    from mllama_cli.processing.documents import crop_image

    waiting, asked = shell.dialogue.attachments, shell.dialogue.conversation.images
    numbers = [as_number(word) for word in re.split(r"[\s,]+", argument.strip())]
    which, box = (numbers[0], numbers[1:]) if len(numbers) == 5 else (len(waiting), numbers)
    x, y, width, height = box if len(box) == 4 else (None,) * 4
    if which is None or x is None or y is None or width is None or height is None:
        raise UsageError(
            "/crop needs x, y, width and height in pixels, after the number of an image if it is not the last",
            "For example: /crop 100,200,400,300 (/images shows each image's size.)",
        )
    crop = (x, y, width, height)
    if waiting and 1 <= which <= len(waiting):
        image = shell.replace_image(which - 1, crop_image(waiting[which - 1], crop))
    elif waiting:
        raise UsageError(f"There is no attached image {which}", "/images lists them.")
    elif asked:
        (image,) = shell.attach_images([crop_image(asked[-1], crop)])
    else:
        raise UsageError("There is no image to crop", "/image PATH attaches one.")
    _note_attached(shell, [image])


def _paste(shell: Shell, argument: str) -> None:
    from mllama_cli.processing.clipboard import read_clipboard_image

    _note_attached(shell, shell.attach_images([read_clipboard_image()]))


def _note_attached(shell: Shell, images: "Sequence[PreparedImage]") -> None:
    *others, last = images
    for image in others:
        shell.terminal.note(f"Attached {chip(image)}.")
    shell.terminal.note(f"Attached {chip(last)}. Now ask about {'them' if others else 'it'}.")


def _images(shell: Shell, argument: str) -> None:
    waiting, asked = shell.dialogue.attachments, shell.dialogue.conversation.images
    for number, image in enumerate(waiting, 1):
        shell.terminal.note(f"{number}. {chip(image)} (sent with your next message)")
    for number, file in enumerate(shell.dialogue.attached_text, len(waiting) + 1):
        shell.terminal.note(f"{number}. {file.chip} (sent with your next message)")
    for part in asked:
        shell.terminal.note(f"-  {part.name} (in the conversation)")
    if not shell.dialogue.chips and not asked:
        shell.terminal.note("No images. /image PATH attaches one.")


def _detach(shell: Shell, argument: str) -> None:
    waiting = shell.dialogue.chips
    if not waiting:
        raise UsageError("Nothing is attached", "/image PATH attaches an image, /read FILE a text.")
    if argument == "all" or (not argument and len(waiting) == 1):
        numbers = list(range(len(waiting)))
    elif _is_number(argument, waiting):
        numbers = [int(argument) - 1]
    else:
        raise UsageError(f"/detach needs a number from 1 to {len(waiting)}, or all", "/images lists them.")
    for number in sorted(numbers, reverse=True):
        images, texts = shell.dialogue.attachments, shell.dialogue.attached_text
        gone = images.pop(number) if number < len(images) else texts.pop(number - len(images))
        shell.terminal.note(f"Detached {gone.name.rpartition('/')[2]}.")


def _preview(shell: Shell, argument: str) -> None:
    waiting, asked = shell.dialogue.attachments, shell.dialogue.conversation.images
    if argument in ("on", "off"):
        shell.display.preview = argument == "on"
        shell.terminal.note(f"Previews are {argument}.")
    elif argument and not _is_number(argument, waiting):
        raise UsageError("/preview takes the number of an attached image, on or off", "/images lists them.")
    elif waiting:
        shell.show_image(waiting[int(argument) - 1 if argument else -1])
    elif asked:
        shell.show_image(shell.dialogue.prepare(asked[-1]))
    else:
        raise UsageError("There is no image to show", "/image PATH attaches one.")


def _is_number(argument: str, waiting: Sequence[object]) -> bool:
    number = as_number(argument)
    return number is not None and 1 <= number <= len(waiting)


IMAGE_COMMANDS = (
    Command(
        ("image", "attach"),
        "PATH|URL",
        "image",
        "Attach images: a file, a URL, a folder, a pattern such as *.png, or pages: a.pdf#2-4.",
        _image,
    ),
    Command(("paste",), "", "none", "Attach the image in the clipboard.", _paste),
    Command(("images",), "", "none", "List what is attached.", _images),
    Command(("detach",), "N|all", "number", "Remove an attached image or text.", _detach),
    Command(("crop",), "[N] X,Y,W,H", "number", "Keep a part of an image, at full resolution.", _crop),
    Command(("preview",), "[N|on|off]", "number", "Show an image enlarged; turn thumbnails on or off.", _preview),
)
