"""`mllama import`: make a model of ollama's files or of a GGUF file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.common import load_settings
from mllama_cli.cli.options import AsJson, Debug, Device
from mllama_cli.cli.quantize_run import given_destination, run_plan

if TYPE_CHECKING:
    from mllama_cli.quantization.gguf_import import GgufModel

ROW_ORDERS = {"auto": None, "interleaved": True, "plain": False}
_SUFFIXES = {4: "-int4", 8: "", 16: "-bf16"}


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="ollama:NAME[:TAG] for a model of ollama's, or a GGUF file.",
            autocompletion=complete.importable,
        ),
    ],
    dest: Annotated[
        str | None,
        typer.Argument(
            metavar="DEST", help="A name for -m, or a path with a slash (default: the source's).", show_default=False
        ),
    ] = None,
    projector: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The GGUF file with the vision part, if that is in one of its own."),
    ] = None,
    bits: Annotated[
        Literal["4", "8", "16"],
        typer.Option(metavar="4|8|16", help="Bits of the language model's weights; 4 would be rounded a second time."),
    ] = "8",
    cross_attention: Annotated[
        Literal["auto", "interleaved", "plain"],
        typer.Option(
            metavar="auto|interleaved|plain",
            help="Order of query and key rows in cross-attention: ollama's converter interleaves the halves of a head; "
            "auto compares with an installed 16-bit model.",
        ),
    ] = "auto",
    device: Device = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing model.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Import a Llama 3.2 Vision model of ollama's, or a GGUF file, and print its new folder.

    ollama's files are only read. A stopped import resumes.

    Example: mllama import ollama:llama3.2-vision, and then mllama chat -m llama3.2-vision
    """
    from mllama_cli.terminal.answer_view import StatusLine
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    with StatusLine(terminal) as status:
        status.show("Reading")
        from mllama_cli.engine.device import choose_device
        from mllama_cli.quantization.gguf_import import import_plan

        name, model = _model(source, projector)
        where = choose_device(device or load_settings().device or "auto")
        plan, said = import_plan(model, int(bits), interleaved=ROW_ORDERS[cross_attention])
    terminal.note(said)
    destination = given_destination(dest or name + _SUFFIXES[int(bits)])
    run_plan(terminal, plan, destination, device=where, force=force, dry_run=dry_run, as_json=as_json)


def _model(source: str, projector: Path | None) -> "tuple[str, GgufModel]":
    """Return a name for what is to be imported, and its files."""
    from mllama_cli.checkpoint.gguf.header import is_gguf, read_gguf
    from mllama_cli.core.errors import UsageError
    from mllama_cli.hub.ollama_store import PREFIX, ollama_model
    from mllama_cli.quantization.gguf_import import GgufModel
    from mllama_cli.system.files import expanded, is_file, resolved

    if source.startswith(PREFIX):
        if projector is not None:
            raise UsageError("--projector is for a GGUF file", "ollama's own models need none.")
        found = ollama_model(source)
        return found.local_name, GgufModel(tuple(map(read_gguf, found.files)), found.license(), found.sampling)
    file = expanded(source)
    if not is_file(file):
        raise UsageError(f"{source} is neither ollama:NAME nor a file", "Example: mllama import ollama:llama3.2-vision")
    if not is_gguf(file):
        raise UsageError(f"{source} is not a GGUF file", "Name a .gguf file, or ollama:NAME.")
    files = (file,) if projector is None else (file, expanded(projector))
    return resolved(file).name.removesuffix(".gguf"), GgufModel(tuple(map(read_gguf, files)))
