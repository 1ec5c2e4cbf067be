"""Commands about pictures that wait for their question."""

from typing import TYPE_CHECKING

from mllama_cli.chat.commands.command import Action, needed
from mllama_cli.chat.dropped_paths import find_images
from mllama_cli.core.errors import UsageError

if TYPE_CHECKING:
    from mllama_cli.chat.repl import Repl


def _image(repl: "Repl", argument: str) -> None:
    needed(argument, "image", "a path or a URL")
    # As a terminal pastes it: quoted, escaped, several at once. What is no such thing is a path with spaces in it.
    found = find_images(argument)
    for source in [argument] if found.text.strip() or not found.paths else found.paths:
        attachment = repl.attach(source)
        repl.terminal.note(f"Attached {attachment.chip}. Now ask about it.")


def _paste(repl: "Repl", argument: str) -> None:
    from mllama_cli.processing.clipboard import read_clipboard_image

    attachment = repl.chat.attach(read_clipboard_image())
    repl.show_picture(attachment)
    repl.terminal.note(f"Attached {attachment.chip}. Now ask about it.")


def _images(repl: "Repl", argument: str) -> None:
    waiting, seen = repl.chat.attachments, repl.chat.conversation.images
    for number, attachment in enumerate(waiting, 1):
        repl.terminal.note(f"{number}. {attachment.chip} (waits for your question)")
    for image in seen:
        repl.terminal.note(f"-  {image.name} (in the conversation)")
    if not waiting and not seen:
        repl.terminal.note("No pictures. /image PATH attaches one.")


def _detach(repl: "Repl", argument: str) -> None:
    waiting = repl.chat.attachments
    if not waiting:
        raise UsageError("No picture is attached", "/image PATH attaches one.")
    if argument in ("", "all") and (argument == "all" or len(waiting) == 1):
        gone = list(waiting)
    elif argument.isdigit() and 1 <= int(argument) <= len(waiting):
        gone = [waiting[int(argument) - 1]]
    else:
        raise UsageError(f"/detach needs a number from 1 to {len(waiting)}, or all", "/images lists them.")
    for attachment in gone:
        waiting.remove(attachment)
        repl.terminal.note(f"Detached {attachment.chip}.")


def _preview(repl: "Repl", argument: str) -> None:
    waiting = repl.chat.attachments
    if argument in ("on", "off"):
        repl.look.preview = argument == "on"
        repl.terminal.note(f"Previews are {argument}.")
        return
    if argument and not (argument.isdigit() and 1 <= int(argument) <= len(waiting)):
        raise UsageError("/preview takes the number of an attached picture, on or off", "/images lists them.")
    if waiting:
        repl.show_picture(waiting[int(argument) - 1 if argument else -1], large=True)
    elif repl.chat.conversation.images:
        repl.show_picture(repl.chat.examine(repl.chat.conversation.images[-1]), large=True)
    else:
        raise UsageError("There is no picture to show", "/image PATH attaches one.")


ACTIONS = (
    Action(("image", "attach"), "PATH|URL", "image", "Attach a picture to your next message.", _image),
    Action(("paste",), "", "none", "Attach the picture in the clipboard.", _paste),
    Action(("images",), "", "none", "List attached pictures.", _images),
    Action(("detach",), "N", "number", "Take an attached picture away.", _detach),
    Action(("preview",), "[N|on|off]", "number", "Show a picture large; turn thumbnails on or off.", _preview),
)
