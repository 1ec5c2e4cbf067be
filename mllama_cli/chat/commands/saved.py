"""Slash commands for saved chats."""

import shlex

from mllama_cli.chat.commands.command import Command, require
from mllama_cli.chat.shell import Shell
from mllama_cli.system.files import expanded

HISTORY_LENGTH = 15
"""Chats that /history shows."""


def _save(shell: Shell, argument: str) -> None:
    name = require(argument, "save", "a name")
    autosave = shell.autosave
    autosave.current = autosave.require_store().rename(autosave.saved(shell.dialogue), name)
    shell.terminal.note(f"Saved as {name}. `mllama chat --resume {shlex.quote(name)}` continues it.")


def _load(shell: Shell, argument: str) -> None:
    if not argument:
        _history(shell, "")
        shell.terminal.note("/load NAME or ID continues one of them.")
        return
    shell.show_resumed(shell.autosave.open(argument, shell.dialogue))


def _history(shell: Shell, argument: str) -> None:
    from rich.table import Table

    chats = shell.autosave.require_store().chats(argument, limit=HISTORY_LENGTH)
    if not chats:
        shell.terminal.note("There are no saved chats" + (f" that contain {argument!r}." if argument else " yet."))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("ID", "NAME", "TITLE", "DATE"):
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    for chat in chats:
        table.add_row(str(chat.id), chat.name or "", chat.title, f"{chat.updated:%Y-%m-%d %H:%M}")
    shell.terminal.err.print(table)


def _export(shell: Shell, argument: str) -> None:
    from mllama_cli.chat.export import write_export

    path = expanded(require(argument, "export", "a file name that ends in .md or .json"))
    write_export(shell.autosave.snapshot(shell.dialogue), path)
    shell.terminal.note(f"Wrote {path}.")


SAVED_COMMANDS = (
    Command(("save",), "NAME", "chat", "Name this chat.", _save),
    Command(("load",), "[NAME]", "chat", "Continue a saved chat; alone, list them.", _load),
    Command(("history",), "[TEXT]", "text", "List saved chats, newest first.", _history),
    Command(("export",), "FILE.md|.json", "path", "Write this chat to a file.", _export),
)
