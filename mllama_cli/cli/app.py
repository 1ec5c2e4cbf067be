"""The `mllama` command: register its subcommands and turn errors into exit codes."""

import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mllama_cli.cli.bench import bench
from mllama_cli.cli.caption import caption
from mllama_cli.cli.chat import chat
from mllama_cli.cli.common import ExitStatus
from mllama_cli.cli.completion import completion
from mllama_cli.cli.config import config
from mllama_cli.cli.download import download
from mllama_cli.cli.history import history
from mllama_cli.cli.models import list_models, remove
from mllama_cli.cli.options import DEBUG_KEY
from mllama_cli.cli.quantize import quantize
from mllama_cli.cli.show import show
from mllama_cli.core.errors import MllamaError
from mllama_cli.core.version import __version__


class MllamaGroup(TyperGroup):
    """Turn our errors into one line on stderr and an exit code; ``--debug`` on a command shows the traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            if sys.stdout is None:  # `>&-`
                raise MllamaError("stdout is closed, so the answer has nowhere to go", "Use >/dev/null to drop it.")
            _require_current_folder()
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except MllamaError as error:
            if ctx.meta.get(DEBUG_KEY):
                raise
            from mllama_cli.terminal.console import Terminal

            Terminal().error(error.message, error.hint)
            raise typer.Exit(error.exit_code) from None
        except (RuntimeError, MemoryError) as error:
            if ctx.meta.get(DEBUG_KEY) or isinstance(error, typer.Exit | typer.Abort):
                raise
            from mllama_cli.engine.device import is_out_of_memory, memory_shortage
            from mllama_cli.terminal.console import Terminal

            if not is_out_of_memory(error):
                raise
            shortage = memory_shortage()
            Terminal().error(shortage.message, f"{shortage.hint} --debug shows where it happened.")
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
        """Report write errors here too, as help and version are printed before a command is invoked."""
        for parameter in self.params:  # Typer appends its own after __init__
            if parameter.name in ("install_completion", "show_completion"):
                parameter.hidden = True  # type: ignore[attr-defined]  # `mllama completion` is the documented way
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # ASCII under LC_ALL=POSIX: an answer with a few ? beats none
        try:
            return super().main(*args, **extra)
        except OSError as error:
            # A full disk behind stdout, a folder without read permission: the system's message says it best.
            if "--debug" in sys.argv:
                raise
            from mllama_cli.terminal.console import Terminal

            _drop_output()
            where = f": {error.filename}" if error.filename else ""
            Terminal().error(f"{error.strerror or error}{where}", "--debug shows where it happened.")
            sys.exit(ExitStatus.FAILURE)


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


app = typer.Typer(
    name="mllama",
    cls=MllamaGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Chat with Llama 3.2 Vision models about your pictures, on your own GPU or CPU.",
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


app.command()(chat)
app.command()(caption)
app.command("list")(list_models)
app.command("ls", hidden=True)(list_models)
app.command()(show)
app.command("rm")(remove)
app.command()(download)
app.command("pull", hidden=True)(download)
app.command()(quantize)
app.add_typer(config, name="config")
app.command()(completion)
app.add_typer(history, name="history")
app.command()(bench)
