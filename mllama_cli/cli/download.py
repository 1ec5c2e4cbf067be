"""`mllama download`: download a model from the Hub."""

from typing import TYPE_CHECKING, Annotated

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.common import say_how_to_use
from mllama_cli.cli.options import Debug
from mllama_cli.core.text import human_size, suggest

if TYPE_CHECKING:
    from mllama_cli.hub.plan import DownloadPlan
    from mllama_cli.terminal.console import Terminal


def download(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="An alias (11b, 11b-open, 11b-fp8, 11b-nf4, 11b-base, 90b, ...), a hub id or a model's web address.",
            autocompletion=complete.aliases,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="A branch, tag or commit (default: main).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files and sizes, also of smaller variants; download nothing.")
    ] = False,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Only check that the model is cached and complete (also HF_HUB_OFFLINE=1)."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Download a model into the Hugging Face cache and print its folder.

    Resumes an interrupted download. HF_TOKEN, HF_HOME and HF_ENDPOINT are respected.

    Example: mllama download 11b
    """
    from mllama_cli.core.errors import ModelNotFoundError, UsageError
    from mllama_cli.hub.catalog import MODEL_ALIASES, hub_address, short_name
    from mllama_cli.hub.ollama_store import suggest_alias

    if not model:
        raise UsageError(
            "No model given",
            f"Known names: {', '.join(MODEL_ALIASES)}. `mllama download 11b --dry-run` compares them. "
            "Any hub id works too.",
        )
    repo, named = hub_address(model)
    if repo is None:
        near = suggest_alias(model) or suggest(model, MODEL_ALIASES)
        hint = f"{near}Known names: {', '.join(MODEL_ALIASES)}. A hub id looks like owner/name."
        raise ModelNotFoundError(f"{model!r} is neither an alias nor a hub id", hint)
    if named is not None and revision not in (None, named):
        raise UsageError(f"The address names revision {named}, and --revision {revision}", "Leave one of them out.")
    revision = revision or named or "main"

    from mllama_cli.hub import download as hub
    from mllama_cli.hub.client import is_offline
    from mllama_cli.hub.plan import plan
    from mllama_cli.terminal.console import Terminal
    from mllama_cli.terminal.progress import DownloadView

    terminal = Terminal()
    if offline or is_offline():
        terminal.result(f"{hub.find_offline(repo, revision)}\n")
        return
    todo = plan(repo, revision)
    if dry_run:
        _print_plan(terminal, todo)
        return
    with DownloadView(terminal, short_name(repo)) as view:
        folder = hub.download(todo, view.event)
    terminal.result(f"{folder}\n")
    say_how_to_use(terminal, short_name(repo))


def _print_plan(terminal: "Terminal", todo: "DownloadPlan") -> None:
    from mllama_cli.hub.plan import weights_size
    from mllama_cli.hub.variants import variants
    from mllama_cli.terminal.tables import print_facts, print_table

    cached = ("yes" if file.cached else human_size(file.here) if file.here else "no" for file in todo.files)
    rows = [(file.name, human_size(file.size), state) for file, state in zip(todo.files, cached, strict=True)]
    print_table(terminal, ("FILE", "SIZE", "CACHED"), rows, right=("SIZE",))
    terminal.out.print()
    print_facts(
        terminal,
        [
            ("total", human_size(todo.total)),
            ("already cached", human_size(todo.here)),
            ("to download", human_size(todo.missing)),
            ("free disk", human_size(todo.free)),
            ("folder", todo.folder),
        ],
    )
    if len(known := variants(todo.repo)) > 1:
        terminal.out.print()
        sizes = [weights_size(each.repo) for each in known]
        table = [
            (each.alias, human_size(size) if size else "?", "to be requested" if each.gated else "open", each.repo)
            for each, size in zip(known, sizes, strict=True)
        ]
        print_table(terminal, ("VARIANT", "WEIGHTS", "ACCESS", "REPOSITORY"), table, right=("WEIGHTS",))
