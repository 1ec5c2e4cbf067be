"""`mllama quantize`: write a model with 4- or 8-bit weights."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.common import ExitStatus, load_settings, name_for_use, print_json, say_how_to_use
from mllama_cli.cli.options import Adapter, AsJson, Debug, Device, adapter_folders
from mllama_cli.core.text import human_size

if TYPE_CHECKING:
    from mllama_cli.core.events import QuantizeSummary
    from mllama_cli.quantization.plan import QuantizePlan
    from mllama_cli.terminal.console import Terminal

layer_option = partial(typer.Option, rich_help_panel="Per-layer overrides")


def quantize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A folder, an installed model, an alias or a hub id.", autocompletion=complete.models
        ),
    ],
    dest: Annotated[
        str | None,
        typer.Argument(
            metavar="DEST",
            help="A name for -m, or a path with a slash (default: the source's name with -int4 or -int8).",
            show_default=False,
        ),
    ] = None,
    bits: Annotated[Literal["4", "8"], typer.Option(metavar="4|8", help="Bits of the language model's weights.")] = "4",
    group_size: Annotated[
        Literal["128", "64", "32", "channel"],
        typer.Option(
            metavar="128|64|32|channel",
            help="Weights per scale: smaller groups are more accurate and take more space.",
        ),
    ] = "128",
    method: Annotated[
        Literal["search", "rtn"],
        typer.Option(
            metavar="search|rtn", help="Search for the best scales, or round to nearest: faster, less accurate."
        ),
    ] = "search",
    keep: Annotated[
        list[str] | None,
        layer_option(metavar="PATTERN", help="Do not quantize these layers, e.g. layers.0.* or lm_head."),
    ] = None,
    bits_for: Annotated[
        list[str] | None,
        layer_option(metavar="PATTERN=BITS", help="Use 4, 8 or 16 bits for these layers."),
    ] = None,
    device: Device = None,
    adapter: Adapter = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing model.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Quantize a model to 4 or 8 bits and print its new folder. The 11B model then takes 8 GB.

    Vision, embeddings and norms are not quantized; sensitive layers get 8 bits. A stopped run resumes.

    Example: mllama quantize 11b, and then mllama chat -m 11b-int4
    """
    from mllama_cli.hub.catalog import resolve
    from mllama_cli.terminal.answer_view import StatusLine
    from mllama_cli.terminal.console import Terminal
    from mllama_cli.terminal.progress import DownloadView

    terminal = Terminal()
    exceptions = tuple(map(_bits_for, bits_for or ()))
    size = 0 if group_size == "channel" else int(group_size)
    folder = resolve(source)
    adapters = adapter_folders(adapter)
    destination = _destination(dest, source, folder, int(bits), size, adapters)
    with StatusLine(terminal) as status:
        status.show("Starting")
        from mllama_cli.core.events import Notice, QuantizeProgress, QuantizeSummary
        from mllama_cli.engine.device import choose_device
        from mllama_cli.quantization.plan import make_plan
        from mllama_cli.quantization.policy import QuantizeOptions
        from mllama_cli.quantization.quantize import quantize as run
        from mllama_cli.quantization.schemes import Scheme

        where = choose_device(device or load_settings().device or "auto")
        options = QuantizeOptions(Scheme(int(bits), size), method, tuple(keep or ()), exceptions)
        plan = make_plan(folder, options, adapters=adapters)
    if dry_run:
        for note in plan.layers.notes:
            terminal.note(note)
        _print_plan(terminal, plan, destination, as_json)
        return
    summary: QuantizeSummary | None = None
    try:
        with DownloadView(terminal, destination.name) as view:
            for event in run(plan, destination, device=where, force=force):
                if isinstance(event, Notice):
                    terminal.note(event.text)
                elif isinstance(event, QuantizeProgress):
                    view.event(event)
                elif isinstance(event, QuantizeSummary):
                    summary = event
    except KeyboardInterrupt:
        terminal.note("Stopped. Run the same command to resume.")
        raise typer.Exit(ExitStatus.INTERRUPTED) from None
    assert summary is not None
    _print_summary(terminal, summary, as_json)


def _bits_for(text: str) -> tuple[str, int]:
    from mllama_cli.core.errors import UsageError

    pattern, equals, bits = text.rpartition("=")
    if not equals or not pattern or bits not in ("4", "8", "16"):
        raise UsageError(f"--bits-for {text!r} is not PATTERN=BITS", "Example: --bits-for 'down_proj=8' (4, 8 or 16).")
    return pattern, int(bits)


def _destination(
    given: str | None, source: str, folder: Path, bits: int, group_size: int, adapters: list[Path]
) -> Path:
    """Return the folder to write: a path if ``given`` has a slash, else a name in the models folder."""
    from mllama_cli.hub.catalog import models_folder
    from mllama_cli.system.files import expanded, resolved

    if given:
        if "/" in given or "\\" in given or given.startswith(("~", ".")):
            return expanded(given).absolute()
        return models_folder() / given
    name = source.rstrip("/").rpartition("/")[2]
    if name in ("", ".", "..", "~"):
        name = resolved(folder).name
    if folder.parent.name == "snapshots" and name == folder.name:  # a commit's hash is not a name
        name = folder.parent.parent.name.rpartition("--")[2]
    for adapter in adapters:
        name = f"{name}-{resolved(adapter).name}"
    size = {128: "", 0: "-channel"}.get(group_size, f"-g{group_size}")
    return models_folder() / f"{name}-int{bits}{size}"


def _print_plan(terminal: "Terminal", plan: "QuantizePlan", destination: Path, as_json: bool) -> None:
    from mllama_cli.hub.plan import free_space
    from mllama_cli.quantization.quantize import WORKING_MEMORY
    from mllama_cli.quantization.summary import summarize
    from mllama_cli.terminal.tables import print_facts, print_table

    rows = summarize(plan)
    free = free_space(destination)
    if as_json:
        record: dict[str, Any] = {
            "path": str(destination),
            "layers": [{**vars(row), "scheme": row.scheme} for row in rows],
            "size_before": plan.size_before,
            "size_after": plan.size_after,
            "bits_per_weight": plan.bits_per_weight,
            "free_disk": free,
            "working_memory": WORKING_MEMORY,
        }
        print_json(terminal, record)
        return
    print_table(
        terminal,
        ("LAYERS", "BECOME", "TENSORS", "BEFORE", "AFTER"),
        [(row.layers, row.scheme, str(row.tensors), human_size(row.before), human_size(row.after)) for row in rows],
        right=("TENSORS", "BEFORE", "AFTER"),
        wrapped=("LAYERS",),
    )
    terminal.out.print()
    print_facts(
        terminal,
        [
            ("size", f"{human_size(plan.size_before)} -> {human_size(plan.size_after)}"),
            ("bits per weight", f"{plan.bits_per_weight:.2f}"),
            ("files", str(len(plan.shards))),
            ("free disk", human_size(free)),
            ("memory to quantize", f"at most {human_size(WORKING_MEMORY)}"),
            ("memory to run", f"{human_size(plan.size_after)} and what a conversation takes"),
            ("folder", destination),
        ],
    )


def _print_summary(terminal: "Terminal", summary: "QuantizeSummary", as_json: bool) -> None:
    import dataclasses

    from mllama_cli.quantization.policy import short

    if as_json:
        record = dataclasses.asdict(summary)
        print_json(terminal, {"path": record.pop("folder"), **record})
        return
    terminal.note(
        f"{human_size(summary.size_before)} -> {human_size(summary.size_after)}: "
        f"{summary.bits_per_weight:.2f} bits per weight, in {summary.seconds:.0f} s"
    )
    for error in summary.errors:
        terminal.note(
            f"{error.bits}-bit: relative squared error {100 * error.mean:.2g}% on average over {error.matrices} "
            f"matrices, at worst {100 * error.worst:.2g}% in {short(error.worst_name)}"
        )
    terminal.result(f"{summary.folder}\n")
    say_how_to_use(terminal, name_for_use(Path(summary.folder)))
