"""The `mllama` command: register its subcommands and turn errors into exit codes."""

import io
import os
import sys
from typing import Annotated, Any

import typer

from mllama_cli.cli.commands import Commands, Group, LazyCommand
from mllama_cli.cli.common import DEBUG_KEY, ExitStatus, error_fields
from mllama_cli.cli.ranks import follow_launched, launched
from mllama_cli.core.errors import MemoryShortageError, MllamaError
from mllama_cli.core.version import __version__

_ASK, _MODELS, _ENGINES, _OTHER = "Ask", "Models", "Running engines", "Chats, settings and speed"

COMMANDS = (
    LazyCommand(
        "chat", "chat:chat", "Ask a question, with or without pictures; the answer streams to stdout.", section=_ASK
    ),
    LazyCommand(
        "caption", "caption:caption", "Write captions for pictures: photo.txt next to photo.jpg.", section=_ASK
    ),
    LazyCommand("serve", "serve:serve", "Serve a model over HTTP, for clients of OpenAI and of ollama.", section=_ASK),
    LazyCommand(
        "download",
        "download:download",
        "Download a model into the Hugging Face cache and print its folder.",
        section=_MODELS,
    ),
    LazyCommand(
        "pull",
        "download:download",
        "Download a model into the Hugging Face cache and print its folder.",
        section=_MODELS,
        hidden=True,
    ),
    LazyCommand(
        "list", "models:list_models", "List the models on this machine: name, size, kind, date.", section=_MODELS
    ),
    LazyCommand(
        "ls",
        "models:list_models",
        "List the models on this machine: name, size, kind, date.",
        section=_MODELS,
        hidden=True,
    ),
    LazyCommand(
        "show",
        "show:show",
        "Show a model's architecture, parameters, memory, chat template and defaults, or what a LoRA adapter changes.",
        section=_MODELS,
    ),
    LazyCommand(
        "quantize", "quantize:quantize", "Quantize a model to 4 or 8 bits and print its new folder.", section=_MODELS
    ),
    LazyCommand(
        "import",
        "import_:import_model",
        "Import a Llama 3.2 Vision model of ollama's, a GGUF file or Meta's own files, and print its new folder.",
        section=_MODELS,
    ),
    LazyCommand("rm", "models:remove", "Delete models from this machine and free their disk space.", section=_MODELS),
    LazyCommand(
        "ps",
        "ps:ps",
        "List the running engines: model, device, memory, answers, time until they end, address.",
        section=_ENGINES,
    ),
    LazyCommand("stop", "ps:stop", "End running engines and free their memory.", section=_ENGINES),
    LazyCommand("history", "history:history", "List, show, export and delete saved chats.", section=_OTHER),
    LazyCommand("config", "config:config", "Show and change defaults: model, sampling, display.", section=_OTHER),
    LazyCommand(
        "completion",
        "completion:completion",
        "Print the completion script for a shell; its first line says where to put it.",
        section=_OTHER,
    ),
    LazyCommand(
        "bench",
        "bench:bench",
        "Measure loading, vision, time to first token, prefill and decoding, and compare with memory bandwidth.",
        section=_OTHER,
    ),
)
"""All commands, in the order of `mllama --help`. Their help is that of the functions (tests/cli/test_startup.py)."""

_COMPLETE_VARIABLE = "_MLLAMA_COMPLETE"
"""Set by the shells' completion scripts."""

_WORDS: list[str] = []
"""The command line, as options that were not parsed yet count for errors too."""


class MllamaGroup(Group):
    """Turn our errors into one line on stderr and an exit code; ``--debug`` on a command shows the traceback."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in COMMANDS:
            self.add_command(command)

    def invoke(self, ctx: Any) -> Any:
        try:
            if sys.stdout is None:  # `>&-`
                raise MllamaError("stdout is closed, so the answer has nowhere to go", "Use >/dev/null to drop it.")
            _require_current_folder()
            if (world := launched()) is not None and world[0] > 0:  # the command runs on rank 0
                return follow_launched(world[0])
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except MllamaError as error:
            if ctx.meta.get(DEBUG_KEY):
                raise
            _report(error)
            raise typer.Exit(error.exit_code) from None
        except (RuntimeError, MemoryError) as error:
            if ctx.meta.get(DEBUG_KEY) or isinstance(error, typer.Exit | typer.Abort):
                raise
            from mllama_cli.engine.device import is_out_of_memory, memory_shortage

            if not is_out_of_memory(error):
                raise
            shortage = memory_shortage()
            shortage.hint = f"{shortage.hint} --debug shows where it happened."
            _report(shortage)
            raise typer.Exit(shortage.exit_code) from None
        except KeyboardInterrupt:
            if ctx.meta.get(DEBUG_KEY):
                raise
            raise typer.Exit(ExitStatus.INTERRUPTED) from None
        except BrokenPipeError:
            # The reader (`| head`) has all it wants: exit quietly.
            _drop_output()
            raise typer.Exit(ExitStatus.DONE) from None

    def main(self, *args: Any, **extra: Any) -> Any:
        """Report usage and write errors here too, as help and version are printed before a command is invoked."""
        if _COMPLETE_VARIABLE in os.environ:  # Typer's own options would do it, but `mllama completion` is the one way
            from typer.completion import completion_init  # type: ignore[attr-defined]

            completion_init()
        _WORDS[:] = (args[0] if args else extra.get("args")) or sys.argv[1:]
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # ASCII under LC_ALL=POSIX: an answer with a few ? beats none
        try:
            sys.exit(super().main(*args, **{**extra, "standalone_mode": False}) or ExitStatus.DONE)
        except BrokenPipeError:
            _drop_output()
            sys.exit(ExitStatus.DONE)
        except OSError as error:
            # A full disk behind stdout, a folder without read permission: the system's message says it best.
            if "--debug" in sys.argv:
                raise
            _drop_output()
            where = f": {error.filename}" if error.filename else ""
            _report(MllamaError(f"{error.strerror or error}{where}", "--debug shows where it happened."))
            sys.exit(ExitStatus.FAILURE)
        except Exception as error:
            # Typer has its own copy of click in some versions, so its errors are known by their method.
            if not hasattr(error, "format_message"):
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                typer.echo(error.format_message())
                sys.exit(ExitStatus.USAGE)
            from mllama_cli.cli.usage import reworded

            ours = reworded(error)
            _report(ours)
            sys.exit(ours.exit_code)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Read `run MODEL` as `chat -m MODEL` and `help COMMAND` as `COMMAND --help`; point on from unknown words."""
        word, *rest = args
        if word == "run":
            args = ["chat", *(["-m"] if rest and not rest[0].startswith("-") else []), *rest]
        elif word == "help" and rest:
            args = [*rest, "--help"]
        elif word == "help":
            typer.echo(ctx.get_help())
            ctx.exit()
        elif word not in self.commands and not word.startswith("-") and not ctx.resilient_parsing:
            from mllama_cli.cli.usage import unknown_command

            raise unknown_command(args, [name for name, each in self.commands.items() if not each.hidden])
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, LazyCommand) else command, rest


def _report(error: MllamaError) -> None:
    """Print an error on stderr: as two lines, or with --json as an object."""
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    if isinstance(error, MemoryShortageError):
        from mllama_cli.cli.answerers import warm_engines

        error.hint = " ".join(filter(None, [error.hint, warm_engines()]))
    if "--json" not in _WORDS:
        terminal.error(error.message, error.hint)
    elif terminal.stderr is not None:
        import json

        from mllama_cli.core.text import hide_passwords

        about = error_fields(error.message, hide_passwords(error.hint), error.kind)  # a hint may have been added to
        terminal.stderr.write(json.dumps({"error": {**about, "code": int(error.exit_code)}}) + "\n")


def _require_current_folder() -> None:
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd() would do the same
    except OSError as error:
        # MKL ends the process without it, and no relative path means anything.
        raise MllamaError("The current folder is gone, or may not be read", "Go to another with cd.") from error


def _drop_output() -> None:
    """Send what is left to the null device, so that the flush at exit does not report the error again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = Commands(
    name="mllama",
    cls=MllamaGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 200},
    pretty_exceptions_enable=False,
    help="Chat with Llama 3.2 Vision models about your pictures, on your own GPU or CPU.",
    epilog="`mllama run MODEL` is `mllama chat -m MODEL`; `mllama help COMMAND` is `mllama COMMAND --help`.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mllama {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass
