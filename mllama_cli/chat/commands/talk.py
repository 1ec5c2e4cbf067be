"""Commands about the conversation itself."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mllama_cli.chat.commands.command import Action, needed
from mllama_cli.core.errors import UsageError

if TYPE_CHECKING:
    from mllama_cli.chat.repl import Repl

LARGEST_TEXT = 4 * 2**20
"""Bytes that /read takes at most: far more than any context holds."""


def _clear(repl: "Repl", argument: str) -> None:
    repl.saving.start_anew()
    repl.chat.clear()
    repl.terminal.note("A new conversation.")


def _regen(repl: "Repl", argument: str) -> None:
    if repl.chat.last_question is None:
        raise UsageError("There is no answer to make anew: nothing was asked yet", "")
    repl.show(repl.chat.regenerate())


def _undo(repl: "Repl", argument: str) -> None:
    question = repl.chat.take_back()
    repl.saving.save(repl.chat)
    repl.terminal.note(f"Took back: {_short(question.text)}")


def _edit(repl: "Repl", argument: str) -> None:
    question = repl.chat.take_back()
    for image in question.images:
        repl.chat.attach(image)
    repl.saving.save(repl.chat)
    repl.draft = question.text


def _read(repl: "Repl", argument: str) -> None:
    path = Path(needed(_unquoted(argument), "read", "a file")).expanduser()
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise UsageError(f"{path} is larger than {LARGEST_TEXT >> 20} MiB", "No context holds that much.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", "/image attaches a picture.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Check the path.") from None
    if not text.strip():
        raise UsageError(f"{path} is empty", "")
    repl.chat.attached_text.append(f"{path.name}:\n{text.rstrip()}")
    lines = len(text.splitlines())
    repl.terminal.note(f"{path.name} ({lines} line{'s' * (lines != 1)}) goes with your next message.")


def _copy(repl: "Repl", argument: str) -> None:
    from mllama_cli.terminal.clipboard import copy_text

    text = repl.chat.last_answer
    if not text:
        raise UsageError("There is no answer to copy yet", "")
    if argument not in ("", "code"):
        raise UsageError("/copy takes nothing, or the word code", "/copy code takes the last code block.")
    what = "answer"
    if argument == "code":
        blocks = re.findall(r"^ {0,3}(?:```|~~~)[^\n]*\n(.*?)^ {0,3}(?:```|~~~)", text + "\n", re.DOTALL | re.MULTILINE)
        if not blocks:
            raise UsageError("The last answer has no code block", "/copy takes all of it.")
        text, what = blocks[-1].rstrip("\n"), "code"
    copy_text(repl.terminal, text)
    repl.terminal.note(f"Copied the {what} ({len(text)} characters).")


def _unquoted(path: str) -> str:
    for quote in "\"'":
        if len(path) > 1 and path.startswith(quote) and path.endswith(quote):
            return path[1:-1]
    return re.sub(r"\\(.)", r"\1", path) if "\\ " in path else path


def _short(text: str) -> str:
    first = " ".join(text.split())
    return first if len(first) <= 60 else first[:59] + "…"


ACTIONS = (
    Action(("clear", "new"), "", "none", "Start a new conversation.", _clear),
    Action(("regen", "regenerate", "retry"), "", "none", "Another answer to the last question.", _regen),
    Action(("undo",), "", "none", "Take the last question and its answer back.", _undo),
    Action(("edit",), "", "none", "Change the last question and ask it again.", _edit),
    Action(("read",), "FILE", "path", "Put the text of a file into your next message.", _read),
    Action(("copy",), "[code]", "text", "Copy the last answer, or its last code block.", _copy),
)
