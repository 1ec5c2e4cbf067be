"""The slash commands: their list, and which one a line means."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mllama_cli.chat.commands import images as picture_actions
from mllama_cli.chat.commands import saved as saved_actions
from mllama_cli.chat.commands import settings as setting_actions
from mllama_cli.chat.commands import talk as talk_actions
from mllama_cli.chat.commands.command import Action
from mllama_cli.core.errors import UsageError

if TYPE_CHECKING:
    from mllama_cli.chat.repl import Repl


@dataclass(frozen=True)
class Command:
    """A command as it was typed."""

    action: Action
    argument: str


def _help(repl: "Repl", argument: str) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for action in COMMANDS:
        others = ", ".join(f"/{name}" for name in action.names[1:])
        table.add_row(action.call, action.help + (f" (also {others})" if others else ""))
    for keys, what in KEYS:
        table.add_row(keys, what)
    repl.terminal.err.print(table)


def _leave(repl: "Repl", argument: str) -> None:
    repl.leaving = True


KEYS = (
    ("Enter", "Send. Alt-Enter or Ctrl-J makes a new line, so does everything between two lines of three quotes."),
    ("Ctrl-C", "Stop the answer, and keep what was said. Clears the line while you type."),
    ("Ctrl-G", "Write in your editor ($VISUAL, $EDITOR)."),
    ("Up, Ctrl-R", "Earlier messages; search them."),
    ("Tab", "Complete commands, paths and names."),
    ("Ctrl-D", "Leave."),
)
COMMANDS = (
    *picture_actions.ACTIONS,
    *talk_actions.ACTIONS,
    *setting_actions.ACTIONS,
    *saved_actions.ACTIONS,
    Action(("help", "?"), "", "none", "This list.", _help),
    Action(("bye", "exit", "quit"), "", "none", "Leave.", _leave),
)
_BY_NAME = {name: action for action in COMMANDS for name in action.names}


def find_command(line: str) -> Command | None:
    """The command that a line means; None for a message. UsageError for a command that does not exist.

    A line that begins with the path of something that exists is a message, not a command.
    """
    text = line.strip()
    if not text.startswith("/"):
        return None
    word, _, argument = text[1:].partition(" ")
    name, _, more = word.partition("\n")
    if name.lower() in _BY_NAME:
        return Command(_BY_NAME[name.lower()], f"{more}{argument}".strip())
    if "/" in name or "\\" in name or _exists(text) or _exists("/" + name):
        return None
    near = difflib.get_close_matches(name.lower(), _BY_NAME, n=1, cutoff=0.5)
    raise UsageError(
        f"There is no command /{name}", f"Did you mean /{near[0]}? /? lists all." if near else "/? lists all commands."
    )


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a name that is too long for the system
        return False
