"""Slash commands for the conversation itself."""

import os
import re

from mllama_cli.chat.commands.command import Command, require
from mllama_cli.chat.dialogue import AttachedText, default_question
from mllama_cli.chat.shell import Shell
from mllama_cli.chat.storage.saved import printable, shortened
from mllama_cli.core.errors import UsageError
from mllama_cli.system.files import expanded
from mllama_cli.system.text_file import read_text


def _clear(shell: Shell, argument: str) -> None:
    shell.autosave.detach()
    shell.dialogue.clear()
    shell.terminal.note("New conversation.")


def _regen(shell: Shell, argument: str) -> None:
    shell.show_answer(shell.dialogue.regenerate())


def _undo(shell: Shell, argument: str) -> None:
    question = shell.dialogue.undo()
    shell.autosave.save(shell.dialogue)
    shell.terminal.note(f"Removed: {shortened(printable(question.text))} (/redo restores it)")


def _redo(shell: Shell, argument: str) -> None:
    question = shell.dialogue.redo()
    shell.autosave.save(shell.dialogue)
    shell.terminal.note(f"Restored: {shortened(printable(question.text))}")


def _edit(shell: Shell, argument: str) -> None:
    shell.draft = shell.dialogue.begin_edit() or default_question(len(shell.dialogue.attachments))


def _read(shell: Shell, argument: str) -> None:
    path = expanded(require(_unquoted(argument), "read", "a file"))
    text = read_text(path, hint="/image attaches an image.")
    if not text.strip():
        raise UsageError(f"{path} is empty", "")
    file = AttachedText(os.path.realpath(path), path.name, text.rstrip())
    shell.dialogue.attach_text(file)
    shell.terminal.note(f"Attached {file.chip}. It goes with your next message.")


def _copy(shell: Shell, argument: str) -> None:
    from mllama_cli.terminal.clipboard import copy_text

    text = shell.dialogue.last_answer
    if not text:
        raise UsageError("There is no answer to copy yet", "")
    if argument not in ("", "code"):
        raise UsageError("/copy takes no argument, or the word code", "/copy code copies the last code block.")
    what = "answer"
    if argument == "code":
        blocks = re.findall(r"^ {0,3}(?:```|~~~)[^\n]*\n(.*?)^ {0,3}(?:```|~~~)", text + "\n", re.DOTALL | re.MULTILINE)
        if not blocks:
            raise UsageError("The last answer has no code block", "/copy copies all of it.")
        text, what = blocks[-1].rstrip("\n"), "code"
    copy_text(shell.terminal, text)
    shell.terminal.note(f"Copied the {what} ({len(text)} characters).")


def _unquoted(path: str) -> str:
    for quote in "\"'":
        if len(path) > 1 and path.startswith(quote) and path.endswith(quote):
            return path[1:-1]
    return re.sub(r"\\(.)", r"\1", path) if "\\ " in path else path


ANSWER_COMMANDS = (
    Command(("regen", "regenerate", "retry"), "", "none", "Answer the last question again.", _regen),
    Command(("undo",), "", "none", "Remove the last question and its answer.", _undo),
    Command(("redo",), "", "none", "Restore what /undo removed.", _redo),
    Command(("edit",), "", "none", "Edit the last question; the new one replaces it when it is answered.", _edit),
    Command(("copy",), "[code]", "text", "Copy the last answer, or its last code block.", _copy),
)
TALK_COMMANDS = (
    Command(("clear", "new"), "", "none", "Start a new conversation.", _clear),
    Command(("read",), "FILE", "path", "Attach the text of a file to your next message.", _read),
)
