"""List all slash commands, and find the one that a line calls."""

from mllama_cli.chat.commands import images, saved, settings, talk
from mllama_cli.chat.commands.command import Command
from mllama_cli.chat.shell import Shell
from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import suggest
from mllama_cli.system.files import exists


def _help(shell: Shell, argument: str) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for command in COMMANDS:
        others = ", ".join(f"/{name}" for name in command.names[1:])
        table.add_row(command.call, command.help + (f" (also {others})" if others else ""))
    for keys, what in KEY_HELP:
        table.add_row(keys, what)
    shell.terminal.err.print(table)


def _bye(shell: Shell, argument: str) -> None:
    shell.leaving = True


KEY_HELP = (
    ("Enter", 'Send. Alt-Enter and Ctrl-J start a new line; so does Enter after an opening """.'),
    ("Ctrl-C", "Stop the answer and keep it so far; while typing, clear the line."),
    ("Ctrl-G", "Write in your editor ($VISUAL, $EDITOR)."),
    ("Up, Ctrl-R", "Recall earlier messages; search them."),
    ("Tab", "Complete commands, paths and names."),
    ("Ctrl-D", "Leave."),
)
COMMANDS = (
    *images.IMAGE_COMMANDS,
    *talk.TALK_COMMANDS,
    *settings.SETTINGS_COMMANDS,
    *saved.SAVED_COMMANDS,
    Command(("help", "?"), "", "none", "Show this list.", _help),
    Command(("bye", "exit", "quit"), "", "none", "Leave.", _bye),
)
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
