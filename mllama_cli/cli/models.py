"""`mllama list` and `mllama rm`: list and delete the models on this machine."""

from typing import TYPE_CHECKING, Annotated

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.common import confirmed, print_json, require_confirmation
from mllama_cli.cli.options import AsJson, Debug, Yes
from mllama_cli.core.text import human_size, one_line

if TYPE_CHECKING:
    from rich.text import Text

    from mllama_cli.hub.catalog import ModelEntry


def list_models(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the models on this machine: name, size, kind, date."""
    from mllama_cli.hub.catalog import built_in, installed, local_model
    from mllama_cli.hub.ollama_store import PREFIX, importable
    from mllama_cli.terminal.console import Terminal
    from mllama_cli.terminal.tables import fits, print_table

    terminal = Terminal()
    entries = [*installed(), built_in()]
    if as_json:
        print_json(
            terminal,
            [
                {
                    "name": entry.name,
                    "size": entry.size,
                    "kind": entry.kind,
                    "updated": entry.modified.astimezone().isoformat(timespec="seconds"),
                    "where": entry.where,
                    "revision": entry.revision,
                    "complete": entry.complete,
                    "path": str(entry.path),
                }
                for entry in entries
            ],
        )
        return
    titles = ("NAME", "SIZE", "KIND", "DATE", "WHERE")
    on_screen = terminal.stdout_is_tty  # scripts get the ids alone
    rows = [_row(entry, alias=on_screen, name=True) for entry in entries]
    if on_screen and not fits(terminal, titles, rows):
        rows = [_row(entry, alias=True, name=False) for entry in entries]
    print_table(terminal, titles, rows, right=("SIZE",), wrapped=("KIND",))
    for found in importable():
        if local_model(found.local_name) is None:
            terminal.note(
                f"ollama has {found.name} ({human_size(found.size)}), which is not imported: "
                f"`mllama import {PREFIX}{found.name}`"
            )
    if len(entries) == 1:
        terminal.note("The built-in model knows only simple drawings. Get a real one with `mllama download 11b`.")


def _row(entry: "ModelEntry", *, alias: bool, name: bool) -> tuple["str | Text", ...]:
    """Return a model's cells: its alias if it has one, its name dim behind that, or one of them."""
    from rich.text import Text

    from mllama_cli.hub.catalog import short_name

    full = one_line(entry.name)
    called = short_name(full) if alias else full
    both = Text(called).append(f" {full}", style="dim") if name and called != full else called
    kind = entry.kind + ("" if entry.complete else ", incomplete")
    date, where = f"{entry.modified:%Y-%m-%d}", entry.where.removesuffix(" cache")
    return both, human_size(entry.size), kind, date, where


def remove(
    names: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Installed models.", autocompletion=complete.installed_models),
    ],
    yes: Yes = False,
    debug: Debug = False,
) -> None:
    """Delete models from this machine and free their disk space."""
    from mllama_cli.hub.remove import plan_removal
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    # Check all names before deleting anything; an alias and its hub id are one model.
    plans = list(dict.fromkeys(plan_removal(name) for name in names))
    require_confirmation(terminal, given=yes)
    for plan in plans:
        if yes or confirmed(terminal, f"{plan.name} ({human_size(plan.size)})"):
            plan.run()
            terminal.note(f"Deleted {plan.name}: {human_size(plan.size)} freed.")
