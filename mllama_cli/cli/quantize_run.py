"""Run the plan of a new model, as `mllama quantize` and `mllama import` do: show it, or write it with progress."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mllama_cli.cli.common import ExitStatus, name_for_use, print_json, say_how_to_use
from mllama_cli.core.text import human_size

if TYPE_CHECKING:
    import torch

    from mllama_cli.core.events import QuantizeSummary
    from mllama_cli.quantization.plan import QuantizePlan
    from mllama_cli.terminal.console import Terminal


def given_destination(name: str) -> Path:
    """Return the folder of a DEST: a path if it has a slash, else a name in the models folder."""
    from mllama_cli.hub.catalog import models_folder
    from mllama_cli.system.files import expanded

    if "/" in name or "\\" in name or name.startswith(("~", ".")):
        return expanded(name).absolute()
    return models_folder() / name


def run_plan(
    terminal: "Terminal",
    plan: "QuantizePlan",
    destination: Path,
    *,
    device: "torch.device",
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the model and print its folder, or with ``dry_run`` show what would be written."""
    from mllama_cli.core.events import Notice, QuantizeProgress, QuantizeSummary
    from mllama_cli.quantization.quantize import quantize
    from mllama_cli.terminal.progress import DownloadView

    if dry_run:
        for note in plan.layers.notes:
            terminal.note(note)
        _print_plan(terminal, plan, destination, as_json)
        return
    summary: QuantizeSummary | None = None
    try:
        with DownloadView(terminal, destination.name) as view:
            for event in quantize(plan, destination, device=device, force=force):
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
