"""`mllama chat`: one question, one streamed answer."""

from typing import Annotated

import typer

from mllama_cli.cli.exit_status import ExitStatus
from mllama_cli.cli.options import (
    OUTPUT,
    Debug,
    Device,
    Dtype,
    MaxTokens,
    MinP,
    Model,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
)

INPUT = "What to ask"


def chat(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="The question. Piped text comes before it.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "-i",
            "--image",
            "-a",
            "--attachment",
            metavar="IMAGE",
            help="A picture: a path, an http(s) or data: URL, or - for stdin (repeatable).",
            rich_help_panel=INPUT,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="The question, as an option.", rich_help_panel=INPUT)
    ] = None,
    system: Annotated[
        str | None,
        typer.Option("-s", "--system", "--system-prompt", help="How the model should behave.", rich_help_panel=INPUT),
    ] = None,
    messages: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A whole conversation as JSON: a list of {role, content} (- for stdin).",
            rich_help_panel=INPUT,
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Give the prompt as it stands: for base models.", rich_help_panel=INPUT)
    ] = False,
    no_stdin: Annotated[
        bool, typer.Option("--no-stdin", help="Leave stdin alone (in `while read` loops).", rich_help_panel=INPUT)
    ] = False,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    stop: Stop = None,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print the answer when it is whole.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object: answer, token counts, timings.", rich_help_panel=OUTPUT),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-u", "--usage", help="Statistics on stderr.", rich_help_panel=OUTPUT)
    ] = False,
    debug: Debug = False,
) -> None:
    """Ask a question, about pictures or without; the answer streams to stdout.

    [bold]mllama chat --image photo.jpg "What is this?"[/]
    """
    from mllama_cli.checkpoint.catalog import default_model, resolve
    from mllama_cli.cli.answer import OneAnswer
    from mllama_cli.cli.question import gather
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    # Everything that can be wrong with the request is looked at before torch is imported and weights are read.
    question = gather(
        terminal,
        words=words or [],
        prompt=prompt,
        images=image or [],
        system=system,
        messages=messages,
        raw=raw,
        no_stdin=no_stdin,
    )
    folder = resolve(model) if model is not None else default_model()

    from mllama_cli.engine.load import Engine
    from mllama_cli.engine.sampling import Sampling

    engine = Engine(folder, model or folder.name, device=device, dtype=dtype)
    sampling = Sampling.from_defaults(
        engine.generation_config,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
        seed=seed,
        stop=tuple(stop) if stop else None,
    )
    inputs = question.inputs(engine.processor)
    run = OneAnswer(terminal, engine, stream=not (no_stream or as_json))
    run.run(inputs, sampling)
    if as_json:
        run.print_json()
    elif no_stream:
        run.print_text()
    run.say_why_it_ended(sampling.max_tokens)
    if verbose:
        run.print_statistics()
    if run.interrupted:
        raise typer.Exit(ExitStatus.INTERRUPTED)
