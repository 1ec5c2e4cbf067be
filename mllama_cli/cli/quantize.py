"""`mllama quantize`: write a model with 4- or 8-bit weights."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.common import load_settings
from mllama_cli.cli.options import Adapter, AsJson, Debug, Device, adapter_folders
from mllama_cli.cli.quantize_run import given_destination, run_plan

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

    terminal = Terminal()
    exceptions = tuple(map(_bits_for, bits_for or ()))
    size = 0 if group_size == "channel" else int(group_size)
    folder = resolve(source)
    adapters = adapter_folders(adapter)
    destination = _destination(dest, source, folder, int(bits), size, adapters)
    with StatusLine(terminal) as status:
        status.show("Starting")
        from mllama_cli.engine.device import choose_device
        from mllama_cli.quantization.plan import make_plan
        from mllama_cli.quantization.policy import QuantizeOptions
        from mllama_cli.quantization.schemes import Scheme

        where = choose_device(device or load_settings().device or "auto")
        options = QuantizeOptions(Scheme(int(bits), size), method, tuple(keep or ()), exceptions)
        plan = make_plan(folder, options, adapters=adapters)
    run_plan(terminal, plan, destination, device=where, force=force, dry_run=dry_run, as_json=as_json)


def _bits_for(text: str) -> tuple[str, int]:
    from mllama_cli.core.errors import UsageError

    pattern, equals, bits = text.rpartition("=")
    if not equals or not pattern or bits not in ("4", "8", "16"):
        raise UsageError(f"--bits-for {text!r} is not PATTERN=BITS", "Example: --bits-for 'down_proj=8' (4, 8 or 16).")
    return pattern, int(bits)


def _destination(
    given: str | None, source: str, folder: Path, bits: int, group_size: int, adapters: list[Path]
) -> Path:
    """Return the folder to write: as given, else one in the models folder named after the source."""
    from mllama_cli.hub.catalog import models_folder
    from mllama_cli.system.files import resolved

    if given:
        return given_destination(given)
    name = source.rstrip("/").rpartition("/")[2]
    if name in ("", ".", "..", "~"):
        name = resolved(folder).name
    if folder.parent.name == "snapshots" and name == folder.name:  # a commit's hash is not a name
        name = folder.parent.parent.name.rpartition("--")[2]
    for adapter in adapters:
        name = f"{name}-{resolved(adapter).name}"
    size = {128: "", 0: "-channel"}.get(group_size, f"-g{group_size}")
    return models_folder() / f"{name}-int{bits}{size}"
