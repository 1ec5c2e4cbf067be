"""`mllama list` and `mllama rm`: list and delete the models on this machine."""

from typing import Annotated

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.common import confirmed, print_json, require_confirmation
from mllama_cli.cli.options import AsJson, Debug, Yes
from mllama_cli.core.text import human_size


def list_models(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the models on this machine: name, size, kind, date."""
    from rich.table import Table

    from mllama_cli.hub.catalog import built_in, installed
    from mllama_cli.terminal.console import Terminal

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
                    "modified": entry.modified.isoformat(timespec="seconds"),
                    "where": entry.where,
                    "revision": entry.revision,
                    "complete": entry.complete,
                    "path": str(entry.path),
                }
                for entry in entries
            ],
        )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    # On a narrow screen KIND is wrapped, so that a name can be copied.
    table.add_column("NAME", no_wrap=True, min_width=max(len(entry.name) for entry in entries))
    table.add_column("SIZE", no_wrap=True, justify="right")
    table.add_column("KIND")
    table.add_column("DATE", no_wrap=True)
    table.add_column("WHERE", no_wrap=True)
    for entry in entries:
        unfinished = "" if entry.complete else ", incomplete"
        date = f"{entry.modified:%Y-%m-%d}"
        where = entry.where.removesuffix(" cache")
        table.add_row(entry.name, human_size(entry.size), entry.kind + unfinished, date, where)
    terminal.out.print(table)
    if len(entries) == 1:
        terminal.note("The built-in model knows only simple drawings. Get a real one with `mllama download 11b`.")


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
