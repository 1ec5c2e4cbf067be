"""`mllama history`: list, show, export and delete saved chats."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.commands import Commands
from mllama_cli.cli.common import confirmed, print_json, require_confirmation
from mllama_cli.cli.options import AsJson, Debug, Yes
from mllama_cli.core.text import one_line

if TYPE_CHECKING:
    from mllama_cli.chat.storage.saved import ChatSummary, SavedChat
    from mllama_cli.terminal.console import Terminal

history = Commands(help="List, show, export and delete saved chats.")

ChatName = Annotated[
    str, typer.Argument(metavar="CHAT", help="A name, the start of one, or a number.", autocompletion=complete.chats)
]


@history.command("ls", hidden=True)
@history.command("list")
def list_chats(
    search: Annotated[
        str, typer.Option("-s", "--search", metavar="TEXT", help="Only chats with this text in their name or messages.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", metavar="N", min=1, help="Only the N newest chats (default: all).")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List saved chats, newest first."""
    from rich.table import Table
    from rich.text import Text

    from mllama_cli.chat.storage.store import ChatStore
    from mllama_cli.hub.catalog import short_name
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    chats = ChatStore().chats(search, limit=limit)
    if as_json:
        print_json(terminal, [_record(chat) for chat in chats])
        return
    if not chats:
        terminal.note(f"No saved chat contains {search!r}." if search else "There are no saved chats yet.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ID", no_wrap=True, justify="right")
    table.add_column("NAME", no_wrap=True)
    # On a narrow screen TITLE and MODEL are truncated, so that the columns people copy stay whole.
    table.add_column("TITLE")
    table.add_column("MESSAGES", no_wrap=True, justify="right")
    table.add_column("IMAGES", no_wrap=True, justify="right")
    table.add_column("MODEL")
    table.add_column("DATE", no_wrap=True)
    screen = terminal.stdout_is_tty
    for chat in chats:
        model = one_line(short_name(chat.model) if screen else chat.model)
        texts = (str(chat.id), chat.name or "", chat.title, str(chat.messages), str(chat.images), model)
        cells = [Text(text, no_wrap=True, overflow="ellipsis") for text in texts]
        table.add_row(*cells, f"{chat.updated:%Y-%m-%d %H:%M}")
    terminal.out.print(table)


@history.command()
def show(name: ChatName, as_json: AsJson = False, debug: Debug = False) -> None:
    """Print a saved chat; --json includes the pictures, for `mllama chat --messages`."""
    from mllama_cli.chat.export import export_record
    from mllama_cli.chat.storage.store import ChatStore
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    saved = ChatStore().load(name)
    if as_json:
        print_json(terminal, export_record(saved))
    else:
        _print_transcript(terminal, saved)


@history.command()
def export(
    name: ChatName,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Output file, .md or .json; - prints Markdown.")] = "-",
    force: Annotated[bool, typer.Option("-f", "--force", help="Overwrite existing files.")] = False,
    debug: Debug = False,
) -> None:
    """Write a saved chat as Markdown (pictures go to FILE_images) or JSON (pictures included)."""
    from urllib.parse import quote

    from mllama_cli.chat.export import data_url, export_markdown, write_export
    from mllama_cli.chat.storage.store import ChatStore
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    saved = ChatStore().load(name)
    if file == "-":
        # Names instead of megabytes of base64, which would push the text off the screen.
        on_screen = terminal.stdout_is_tty
        terminal.result(
            export_markdown(saved, (lambda image: quote(image.name, errors="replace")) if on_screen else data_url)
        )
        return
    written = write_export(saved, Path(file), overwrite=force)
    pictures = f", and {_count(len(written) - 1, 'image')} to {written[1].parent}" if len(written) > 1 else ""
    terminal.note(f"Wrote {written[0]}{pictures}.")


@history.command("rm")
def remove(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="CHAT", help="Names or numbers.", autocompletion=complete.chats)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete all saved chats.")] = False,
    yes: Yes = False,
    debug: Debug = False,
) -> None:
    """Delete saved chats, and the pictures that no other chat uses."""
    from mllama_cli.chat.storage.store import ChatStore
    from mllama_cli.core.errors import UsageError
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    if bool(names) == everything:
        raise UsageError("Name chats to delete, or use --all" + (", not both" if names else ""), "See --help.")
    store = ChatStore()
    # Check all names before deleting anything. Names must be exact: a second `rm trip` must not delete `trip-2024`.
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
    """Print the messages in order; on a terminal without control characters and with the speakers in bold."""
    from rich.text import Text

    from mllama_cli.chat.export import speaker
    from mllama_cli.core.conversation import ImagePart

    screen = terminal.stdout_is_tty
    heading = f"{saved.id}  {saved.name or saved.title}\n{one_line(saved.model)}, {saved.created:%Y-%m-%d %H:%M}\n"
    terminal.result(heading)
    for message in saved.whole:
        if screen:
            terminal.out.print()
            terminal.out.print(Text(f"{one_line(speaker(message))}:"), style="bold")
        else:
            terminal.result(f"\n{one_line(speaker(message))}:\n")
        for part in message.parts:
            said = f"[image: {part.name}]" if isinstance(part, ImagePart) else part.text.rstrip("\n")
            terminal.result(said)
            terminal.result("\n")
        for call in message.tool_calls:
            terminal.result(f"[call: {call.name}({call.arguments})]\n")


def _record(chat: "ChatSummary") -> dict[str, Any]:
    times = {"created": chat.created, "updated": chat.updated}
    about = {name: value for name, value in vars(chat).items() if name not in ("messages", "images")}
    about |= {name: time.isoformat(timespec="seconds") for name, time in times.items()}
    return {**about, "message_count": chat.messages, "image_count": chat.images}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
