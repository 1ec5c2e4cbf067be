"""`mllama caption`: captions for pictures: beside them, in one file, or on stdout."""

from pathlib import Path
from typing import Annotated

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.options import OUTPUT, ComputeOptions, Debug, SamplingOptions, Verbose, option_groups

PICTURES = "Which pictures"
PROMPT = "What is asked, and how the answer is written down"
SPEED = "Speed"


@option_groups
def caption(
    *,
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH...", help="Folders, pictures, globs; - for a list of paths on stdin."),
    ] = None,
    files_from: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A list of paths, one a line (- for stdin).", rich_help_panel=PICTURES),
    ] = None,
    null: Annotated[
        bool,
        typer.Option("-0", "--null", help="The list's paths end with NUL (find -print0).", rich_help_panel=PICTURES),
    ] = False,
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Folders below folders, too.", rich_help_panel=PICTURES)
    ] = False,
    glob: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Only files in folders whose name matches.", rich_help_panel=PICTURES),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="The I-th of N disjoint parts, for several GPUs or machines.", rich_help_panel=PICTURES
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--prompt",
            help="The question; {name}, {stem}, {folder}, {existing} and {tags} are filled in.",
            rich_help_panel=PROMPT,
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The question, from a file.", rich_help_panel=PROMPT)
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(
            help="A ready question: short, detailed, alt-text or tags.",
            autocompletion=complete.caption_styles,
            rich_help_panel=PROMPT,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option("-s", "--system", "--system-prompt", help="How the model should behave.", rich_help_panel=PROMPT),
    ] = None,
    prefix: Annotated[
        str, typer.Option(help="Put before every caption as it stands: a trigger word.", rich_help_panel=PROMPT)
    ] = "",
    suffix: Annotated[str, typer.Option(help="Put behind every caption.", rich_help_panel=PROMPT)] = "",
    strip: Annotated[
        bool, typer.Option("--strip", help='Cut openings such as "The image shows".', rich_help_panel=PROMPT)
    ] = False,
    existing: Annotated[
        str,
        typer.Option(
            help="What becomes of captions that are there: skip, overwrite, append or prepend.",
            autocompletion=complete.existing_choices,
            rich_help_panel=PROMPT,
        ),
    ] = "skip",
    separator: Annotated[
        str | None,
        typer.Option(
            help="Between an old caption and an appended one (default: a blank; a comma for tags).",
            rich_help_panel=PROMPT,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="All captions in one FILE.jsonl or FILE.csv; - for JSON Lines on stdout.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    sidecar: Annotated[
        bool,
        typer.Option(
            "--sidecar", help="A caption file beside the picture, for a single one too.", rich_help_panel=OUTPUT
        ),
    ] = False,
    extension: Annotated[
        str, typer.Option(help="Ending of caption files beside the pictures.", rich_help_panel=OUTPUT)
    ] = ".txt",
    errors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="List pictures that failed, with the reason.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each picture.", rich_help_panel=OUTPUT)
    ] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show each picture small with its caption.", rich_help_panel=OUTPUT)
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first picture that fails.", rich_help_panel=OUTPUT)
    ] = False,
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N", help="Pictures answered at once; auto takes as many as memory allows.", rich_help_panel=SPEED
        ),
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode pictures ahead.", rich_help_panel=SPEED)
    ] = None,
    compute: ComputeOptions,
    sampling: SamplingOptions,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Write captions for pictures: photo.txt beside photo.jpg.

    Captions that are there are left alone, so the same command goes on where it was stopped. A single picture's
    caption is printed instead.

    [bold]mllama caption photos/[/]
    """
    from mllama_cli.cli.caption_request import CaptionRequest

    request = CaptionRequest.checked(
        paths=paths or [],
        files_from=files_from,
        null=null,
        recursive=recursive,
        pattern=glob,
        shard=shard,
        prompt=prompt,
        prompt_file=prompt_file,
        style=style,
        system=system,
        prefix=prefix,
        suffix=suffix,
        strip=strip,
        existing=existing,
        separator=separator,
        output=output,
        sidecar=sidecar,
        extension=extension,
        batch_size=batch_size,
    )
    from mllama_cli.cli.caption_run import run_captions

    run_captions(
        request,
        compute=compute,
        sampling=sampling,
        errors=errors,
        as_json=as_json,
        preview=preview,
        fail_fast=fail_fast,
        workers=workers,
        verbose=verbose,
    )
