"""Commands about saved chats."""

from pathlib import Path
from typing import TYPE_CHECKING

from mllama_cli.chat.commands.command import Action, needed
from mllama_cli.core.errors import UsageError

if TYPE_CHECKING:
    from mllama_cli.chat.repl import Repl

RECENT = 15
"""Chats that /history shows."""


def _save(repl: "Repl", argument: str) -> None:
    name = needed(argument, "save", "a name")
    store = repl.saving.needed()
    repl.saving.save(repl.chat)
    if repl.saving.current is None:
        raise UsageError("There is nothing to save yet", "Ask something first; chats are kept as they go.")
    repl.saving.current = store.rename(repl.saving.current, name)
    repl.terminal.note(f"Saved as {name}. `mllama chat --resume {name}` goes on with it.")


def _load(repl: "Repl", argument: str) -> None:
    saved = repl.saving.open(needed(argument, "load", "the name or number of a saved chat"), repl.chat)
    asked = sum(message.role == "user" for message in saved.conversation)
    repl.terminal.note(f"Going on with {saved.name or saved.id}: {asked} question{'s' * (asked != 1)}.")
    if repl.chat.last_answer:
        repl.replay()


def _history(repl: "Repl", argument: str) -> None:
    from rich.table import Table

    chats = list(repl.saving.needed().chats(argument))[:RECENT]
    if not chats:
        repl.terminal.note("There are no saved chats" + (f" about {argument!r}." if argument else " yet."))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("ID", "NAME", "ABOUT", "DATE"):
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    for chat in chats:
        table.add_row(str(chat.id), chat.name or "", chat.title, f"{chat.updated:%Y-%m-%d %H:%M}")
    repl.terminal.err.print(table, markup=False)


def _export(repl: "Repl", argument: str) -> None:
    from mllama_cli.chat.export import write_export

    path = Path(needed(argument, "export", "a file name that ends in .md or .json")).expanduser()
    store = repl.saving.needed()
    repl.saving.save(repl.chat)
    if repl.saving.current is None:
        raise UsageError("There is nothing to export yet", "Ask something first.")
    write_export(store.load(str(repl.saving.current.id)), path)
    repl.terminal.note(f"Wrote {path}.")


ACTIONS = (
    Action(("save",), "NAME", "chat", "Give this chat a name.", _save),
    Action(("load",), "NAME", "chat", "Go on with a saved chat.", _load),
    Action(("history",), "[TEXT]", "text", "Saved chats, newest first.", _history),
    Action(("export",), "FILE.md|.json", "path", "Write this chat to a file.", _export),
)
