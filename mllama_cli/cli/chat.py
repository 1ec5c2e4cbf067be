"""`mllama chat`: one question and one streamed answer, or, without a question on a terminal, the interactive chat."""

from typing import TYPE_CHECKING, Annotated

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.common import ExitStatus, load_settings, resolve_model
from mllama_cli.cli.options import OUTPUT, ComputeOptions, Debug, SamplingOptions, Verbose, option_groups
from mllama_cli.core.sampling import Sampling

if TYPE_CHECKING:
    from mllama_cli.engine.engine import Engine

INPUT = "What to ask"
SAVED = "Saved chats"


@option_groups
def chat(
    *,
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
            help="A conversation as JSON: a list of {role, content} (- for stdin).",
            rich_help_panel=INPUT,
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Send the prompt verbatim, without the chat template.", rich_help_panel=INPUT)
    ] = False,
    no_stdin: Annotated[
        bool, typer.Option("--no-stdin", help="Leave stdin alone (in `while read` loops).", rich_help_panel=INPUT)
    ] = False,
    resume_last: Annotated[
        bool, typer.Option("-c", "--continue", help="Continue the last saved chat.", rich_help_panel=SAVED)
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Continue a saved chat, by name or number.",
            autocompletion=complete.chats,
            rich_help_panel=SAVED,
        ),
    ] = None,
    no_log: Annotated[bool, typer.Option("--no-log", help="Do not save this chat.", rich_help_panel=SAVED)] = False,
    no_preview: Annotated[
        bool, typer.Option("--no-preview", help="No small pictures in the interactive chat.", rich_help_panel=OUTPUT)
    ] = False,
    compute: ComputeOptions,
    sampling: SamplingOptions,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print only the complete answer.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object: answer, token counts, timings.", rich_help_panel=OUTPUT),
    ] = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Ask a question, about pictures or without; the answer streams to stdout.

    Without a question, on a terminal, opens the interactive chat.

    [bold]mllama chat --image photo.jpg "What is this?"[/]
    """
    from mllama_cli.cli.interactive import find_saved, open_store, run_chat
    from mllama_cli.cli.oneshot import OneAnswer
    from mllama_cli.cli.question import Question, gather, read_images
    from mllama_cli.terminal.answer_view import StatusLine
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    settings = load_settings()
    compute = compute.with_defaults(settings)
    live = terminal.stdin_is_tty and terminal.stdout_is_tty
    live = live and not (words or prompt or messages or raw or no_stream or as_json)
    # Everything that can be wrong with the request is checked before torch is imported and weights are read.
    saved = find_saved(resume, last=resume_last)
    if system is None and saved is None and not (messages or raw):
        system = settings.system
    if live:
        question = Question(raw_images=read_images(image or [], terminal))
    else:
        question = gather(
            terminal,
            words=words or [],
            prompt=prompt,
            images=image or [],
            system=system,
            messages=messages,
            raw=raw,
            no_stdin=no_stdin,
            before=saved.whole if saved else None,
        )
    name, folder = resolve_model(compute.model or (saved.model if saved else None), terminal)
    question = question.prepared(folder)

    with StatusLine(terminal) as status:
        status.show("Starting")  # importing torch is most of it
        engine = compute.open_engine(folder, name)

    def sampling_for(engine: "Engine") -> Sampling:
        return Sampling.from_defaults(engine.generation_config, **{**settings.sampling, **sampling})

    if live:
        from mllama_cli.chat.shell import DisplayOptions

        run_chat(
            terminal,
            engine,
            compute.open_engine,
            sampling_for,
            flags=sampling,
            images=question.images,
            system=system,
            store=open_store(terminal, wanted=not no_log and settings.log is not False),
            saved=saved,
            display=DisplayOptions(
                verbose=verbose or bool(settings.verbose),
                preview=not no_preview and settings.preview is not False,
                theme=settings.theme or "dark",
            ),
        )
        return
    how = sampling_for(engine)
    inputs = question.inputs(engine.processor)
    run = OneAnswer(terminal, engine, stream=not (no_stream or as_json))
    run.run(inputs, how)
    if as_json:
        run.print_json()
    elif no_stream:
        run.print_text()
    run.say_why_it_ended(how.max_tokens)
    if verbose or settings.verbose:
        run.print_statistics()
    if saved is not None and not no_log and question.conversation is not None and run.text:
        from mllama_cli.chat.storage.store import ChatStore

        ChatStore().save(saved, question.conversation.with_assistant(run.text))
    if run.interrupted:
        raise typer.Exit(ExitStatus.INTERRUPTED)
