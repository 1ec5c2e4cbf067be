"""`mllama import`: make a model of ollama's files, of a GGUF file, or of Meta's own files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.common import load_settings
from mllama_cli.cli.options import AsJson, Debug, Device
from mllama_cli.cli.quantize_run import given_destination, run_plan
from mllama_cli.core.errors import UsageError

if TYPE_CHECKING:
    from mllama_cli.quantization.gguf_import import GgufModel
    from mllama_cli.quantization.plan import QuantizePlan

ROW_ORDERS = {"auto": None, "interleaved": True, "plain": False}
_SUFFIXES = {4: "-int4", 8: "", 16: "-bf16"}
_META_SUFFIXES = {4: "-int4", 8: "-int8", 16: ""}


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="ollama:NAME[:TAG] for a model of ollama's, a GGUF file, or a folder with Meta's consolidated.*.pth.",
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
        Literal["4", "8", "16"] | None,
        typer.Option(
            metavar="4|8|16",
            help="Bits of the language model's weights (default: 8, as 4 would round a second time; 16 for Meta's).",
            show_default=False,
        ),
    ] = None,
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
    """Import a Llama 3.2 Vision model of ollama's, a GGUF file or Meta's own files, and print its new folder.

    What is imported is only read. A stopped import resumes.

    Example: mllama import ollama:llama3.2-vision, and then mllama chat -m llama3.2-vision
    """
    from mllama_cli.system.files import expanded, is_folder
    from mllama_cli.terminal.answer_view import StatusLine
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    with StatusLine(terminal) as status:
        status.show("Reading")
        from mllama_cli.engine.device import choose_device

        where = choose_device(device or load_settings().device or "auto")
        if is_folder(expanded(source)):
            if projector is not None or cross_attention != "auto":
                raise UsageError("--projector and --cross-attention are for GGUF files", "Leave them out.")
            name, plan, said = _of_meta(expanded(source), int(bits or 16))
        else:
            name, plan, said = _of_gguf(source, projector, int(bits or 8), ROW_ORDERS[cross_attention])
    terminal.note(said)
    destination = given_destination(dest or name)
    run_plan(terminal, plan, destination, device=where, force=force, dry_run=dry_run, as_json=as_json)


def _of_meta(folder: Path, bits: int) -> "tuple[str, QuantizePlan, str]":
    """Return a name, the plan, and a line about it, for Meta's files in a folder."""
    from mllama_cli.checkpoint.meta.model_files import meta_files
    from mllama_cli.quantization.meta_import import is_base_model, meta_model_name, meta_plan

    files = meta_files(folder)
    name = meta_model_name(files)
    kind = "a base model, without a chat template" if is_base_model(name) else "an instruction-tuned model"
    count = len(files.shards)
    said = f"Meta's files in {count} part{'s' * (count > 1)}, by their folder's name {kind}."
    return name + _META_SUFFIXES[bits], meta_plan(files, bits), said


def _of_gguf(
    source: str, projector: Path | None, bits: int, interleaved: bool | None
) -> "tuple[str, QuantizePlan, str]":
    """Return a name, the plan, and a line about it, for GGUF files."""
    from mllama_cli.quantization.gguf_import import import_plan

    name, model = _model(source, projector)
    return name + _SUFFIXES[bits], *import_plan(model, bits, interleaved=interleaved)


def _model(source: str, projector: Path | None) -> "tuple[str, GgufModel]":
    """Return a name for what is to be imported, and its files."""
    from mllama_cli.checkpoint.files import is_gguf
    from mllama_cli.checkpoint.gguf.header import read_gguf
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
        raise UsageError(
            f"{source} is neither ollama:NAME nor a file or folder", "Example: mllama import ollama:llama3.2-vision"
        )
    if not is_gguf(file):
        raise UsageError(f"{source} is not a GGUF file", "Name a .gguf file, or ollama:NAME.")
    files = (file,) if projector is None else (file, expanded(projector))
    return resolved(file).name.removesuffix(".gguf"), GgufModel(tuple(map(read_gguf, files)))
