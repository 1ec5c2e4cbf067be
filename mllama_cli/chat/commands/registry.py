"""List all slash commands, and find the one that a line calls."""

from collections.abc import Iterable

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mllama_cli.chat.commands import images, saved, settings, talk
from mllama_cli.chat.commands.command import Command
from mllama_cli.chat.shell import Shell
from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import suggest
from mllama_cli.system.files import exists


def _help(shell: Shell, argument: str) -> None:
    if argument:
        name = argument.removeprefix("/").lower()
        if name not in _BY_NAME:
            raise UsageError(f"There is no command /{name}", suggest(name, _BY_NAME, show="/{}".format))
        _print_help(shell, [(_BY_NAME[name].call, _explained(_BY_NAME[name]))])
        return
    for title, commands in GROUPS:
        shell.terminal.err.print(Text(title, "bold underline"))
        _print_help(shell, [(command.call, _explained(command)) for command in commands])
    shell.terminal.err.print(Text("Keys", "bold underline"))
    _print_help(shell, KEY_HELP)
    shell.terminal.note("Drop a picture on the window, or write its path into your message, to attach it.")


def _explained(command: Command) -> str:
    others = ", ".join(f"/{name}" for name in command.names[1:])
    return command.help + (f" (also {others})" if others else "")


def _print_help(shell: Shell, rows: Iterable[tuple[str, str]]) -> None:
    """Print what is typed and what it does in two columns, or in a narrow window below each other."""
    if shell.terminal.err.width < NARROW:
        for typed, explained in rows:
            shell.terminal.err.print(Text(typed, "bold"))
            shell.terminal.err.print(Padding(Text(explained), (0, 0, 0, 4)))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True, min_width=max(len(command.call) for command in COMMANDS))
    table.add_column()
    for typed, explained in rows:
        table.add_row(Text(typed), Text(explained))
    shell.terminal.err.print(table)


def _bye(shell: Shell, argument: str) -> None:
    shell.leaving = True


KEY_HELP = (
    ("Enter", 'Send. Alt-Enter and Ctrl-J start a new line; so does Enter after an opening """.'),
    ("Ctrl-C", "Stop the answer and keep it so far; what was typed ahead is not sent. While typing, clear the line."),
    ("Ctrl-G", "Write in your editor ($VISUAL, $EDITOR)."),
    ("Up, Ctrl-R", "Recall earlier messages; search them."),
    ("Tab", "Complete commands, paths and names."),
    ("Ctrl-Z", "Suspend; fg continues."),
    ("Ctrl-D", "Leave."),
)
NARROW = 70
"""Columns of a window below which /help puts explanations below the commands."""

GROUPS: tuple[tuple[str, tuple[Command, ...]], ...] = (
    ("Images", images.IMAGE_COMMANDS),
    ("Answers", talk.ANSWER_COMMANDS),
    ("Conversation", (*talk.TALK_COMMANDS, *saved.SAVED_COMMANDS)),
    ("Model", settings.SETTINGS_COMMANDS),
    (
        "Other",
        (
            Command(("help", "?"), "[COMMAND]", "text", "Show this list, or how a command is used.", _help),
            Command(("bye", "exit", "quit"), "", "none", "Leave.", _bye),
        ),
    ),
)
COMMANDS = tuple(command for _, commands in GROUPS for command in commands)
_BY_NAME = {name: command for command in COMMANDS for name in command.names}


def find_command(line: str) -> tuple[Command, str] | None:
    """Return the command that a line calls and its argument, or None for a message.

    A line that begins with an existing path is a message. Raise UsageError for an unknown command.
    """
    text = line.strip()
    if not text.startswith("/"):
        return None
    word, _, argument = text[1:].partition(" ")
    name, _, more = word.partition("\n")
    if name.lower() in _BY_NAME:
        return _BY_NAME[name.lower()], f"{more}{argument}".strip()
    if "/" in name or "\\" in name or exists(text) or exists("/" + name):
        return None
    raise UsageError(
        f"There is no command /{name}", f"{suggest(name, _BY_NAME, show='/{}'.format)}/? lists all commands."
    )
