"""`mllama history`: the saved chats."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.common import confirmed, require_confirmation
from mllama_cli.cli.options import AsJson, Debug, Yes
from mllama_cli.core.text import strip_control

if TYPE_CHECKING:
    from mllama_cli.chat.storage.saved import ChatSummary, SavedChat
    from mllama_cli.terminal.console import Terminal

history = typer.Typer(no_args_is_help=True, help="Saved chats: list, show, export, delete.")

Name = Annotated[
    str, typer.Argument(metavar="CHAT", help="A name, its beginning, or a number.", autocompletion=complete.chats)
]

_SPEAKERS = {"system": "System", "user": "You", "assistant": "Assistant"}


@history.command("ls", hidden=True)
@history.command("list")
def list_chats(
    search: Annotated[
        str, typer.Option("-s", "--search", metavar="TEXT", help="Only chats with this text in them or in their name.")
    ] = "",
    limit: Annotated[int | None, typer.Option("-n", "--limit", min=1, help="Only this many, the newest.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List saved chats, newest first."""
    from rich.table import Table
    from rich.text import Text

    from mllama_cli.chat.storage.store import ChatStore
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    chats = ChatStore().chats(search, limit=limit)
    if as_json:
        text = json.dumps([_record(chat) for chat in chats], ensure_ascii=False, indent=2)
        _print(terminal, text + "\n")
        return
    if not chats:
        terminal.note(f"No saved chat has {search!r} in it." if search else "There are no saved chats yet.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ID", no_wrap=True, justify="right")
    table.add_column("NAME", no_wrap=True)
    # On a narrow screen these two are truncated, not wrapped; all others are there to be copied.
    table.add_column("TITLE")
    table.add_column("MESSAGES", no_wrap=True, justify="right")
    table.add_column("IMAGES", no_wrap=True, justify="right")
    table.add_column("MODEL")
    table.add_column("DATE", no_wrap=True)
    for chat in chats:
        model = strip_control(chat.model)
        texts = (str(chat.id), chat.name or "", chat.title, str(chat.messages), str(chat.images), model)
        # Text, not str: what users write is not Rich markup.
        cells = [Text(text, no_wrap=True, overflow="ellipsis") for text in texts]
        table.add_row(*cells, f"{chat.updated:%Y-%m-%d %H:%M}")
    terminal.out.print(table)


@history.command()
def show(name: Name, as_json: AsJson = False, debug: Debug = False) -> None:
    """Print a saved chat; with --json as `mllama chat --messages` reads it, pictures included."""
    from mllama_cli.chat.export import export_json
    from mllama_cli.chat.storage.store import ChatStore
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    saved = ChatStore().load(name)
    if as_json:
        _print(terminal, export_json(saved))
    else:
        _print_transcript(terminal, saved)


@history.command()
def export(
    name: Name,
    file: Annotated[
        str, typer.Argument(metavar="[FILE.md|FILE.json|-]", help="Output file; - is stdout, as Markdown.")
    ] = "-",
    force: Annotated[bool, typer.Option("-f", "--force", help="Overwrite existing files.")] = False,
    debug: Debug = False,
) -> None:
    """Write a saved chat as Markdown (pictures in FILE_images next to it) or JSON (pictures in it)."""
    from urllib.parse import quote

    from mllama_cli.chat.export import data_url, export_markdown, write_export
    from mllama_cli.chat.storage.store import ChatStore
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    saved = ChatStore().load(name)
    if file == "-":
        # On a terminal, names: megabytes of base64 would push the text off the screen.
        on_screen = terminal.stdout_is_tty
        _print(
            terminal,
            export_markdown(saved, (lambda image: quote(image.name, errors="replace")) if on_screen else data_url),
        )
        return
    written = write_export(saved, Path(file), overwrite=force)
    pictures = f", and {_count(len(written) - 1, 'image')} to {written[1].parent}" if len(written) > 1 else ""
    terminal.note(f"Wrote {written[0]}{pictures}.")


@history.command("rm")
def remove(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="CHAT...", help="Names or numbers.", autocompletion=complete.chats)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All saved chats.")] = False,
    yes: Yes = False,
    debug: Debug = False,
) -> None:
    """Delete saved chats, and the pictures that no other chat shows."""
    from mllama_cli.chat.storage.store import ChatStore
    from mllama_cli.core.errors import UsageError
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    if bool(names) == everything:
        raise UsageError("Name chats to delete, or say --all" + (", not both" if names else ""), "See --help.")
    store = ChatStore()
    # All names are checked before anything is deleted. A prefix of a name is not enough here: after `trip` was
    # deleted, `rm trip` must not delete `trip-2024`.
    chats = store.chats() if everything else [store.summary(name, exact=True) for name in names or []]
    chats = list({chat.id: chat for chat in chats}.values())
    if not chats:
        terminal.note("There are no saved chats.")
        return
    require_confirmation(terminal, given=yes)
    if everything and len(chats) > 1:
        if yes or confirmed(terminal, f"all {len(chats)} saved chats"):
            terminal.note(f"Deleted {_count(store.delete(chat.id for chat in chats), 'chat')}.")
        return
    for chat in chats:
        if yes or confirmed(terminal, _called(chat)):
            store.delete([chat.id])
            terminal.note(f"Deleted {_called(chat)}.")


def _called(chat: "ChatSummary") -> str:
    return f"{chat.id} ({chat.name or chat.title}, {_count(chat.messages, 'message')})"


def _print_transcript(terminal: "Terminal", saved: "SavedChat") -> None:
    """Print the messages in order. A terminal gets no control characters, and the speakers in bold."""
    from mllama_cli.core.conversation import ImagePart

    screen = terminal.stdout_is_tty
    heading = f"{saved.id}  {saved.name or saved.title}\n{strip_control(saved.model)}, {saved.created:%Y-%m-%d %H:%M}\n"
    _print(terminal, heading)
    for message in saved.whole:
        if screen:
            terminal.out.print(f"\n{_SPEAKERS[message.role]}:", style="bold")
        else:
            _print(terminal, f"\n{_SPEAKERS[message.role]}:\n")
        for part in message.parts:
            said = f"[image: {part.name}]" if isinstance(part, ImagePart) else part.text.rstrip("\n")
            _print(terminal, strip_control(said) if screen else said)
            _print(terminal, "\n")


def _print(terminal: "Terminal", text: str) -> None:
    from mllama_cli.chat.export import whole_characters

    terminal.stdout.write(whole_characters(text))


def _record(chat: "ChatSummary") -> dict[str, Any]:
    return {
        "id": chat.id,
        "name": chat.name,
        "title": chat.title,
        "model": chat.model,
        "created": chat.created.isoformat(timespec="seconds"),
        "updated": chat.updated.isoformat(timespec="seconds"),
        "messages": chat.messages,
        "images": chat.images,
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
