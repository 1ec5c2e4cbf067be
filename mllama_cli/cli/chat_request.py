"""What `mllama chat` was asked to do, as one value: its options in groups, and the settings behind them.

Imported when the program starts: it imports nothing heavy.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.options import OUTPUT, ComputeOptions, SamplingOptions, Verbose
from mllama_cli.core.sampling import Sampling

if TYPE_CHECKING:
    from mllama_cli.chat.storage.saved import SavedChat
    from mllama_cli.core.settings import Settings
    from mllama_cli.engine.engine import Engine
    from mllama_cli.terminal.console import Terminal

INPUT = "Input"
SAVED = "Saved chats"


@dataclass(frozen=True)
class ChatInput:
    """What the question is made of: see ``build_question``."""

    words: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="The question. Piped text comes before it.")
    ] = None
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
    ] = None
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="The question, as an option.", rich_help_panel=INPUT)
    ] = None
    system: Annotated[
        str | None,
        typer.Option("-s", "--system", "--system-prompt", help="How the model should behave.", rich_help_panel=INPUT),
    ] = None
    messages: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A conversation as JSON: a list of {role, content} (- for stdin).",
            rich_help_panel=INPUT,
        ),
    ] = None
    raw: Annotated[
        bool, typer.Option("--raw", help="Send the prompt verbatim, without the chat template.", rich_help_panel=INPUT)
    ] = False
    no_stdin: Annotated[
        bool, typer.Option("--no-stdin", help="Leave stdin alone (in `while read` loops).", rich_help_panel=INPUT)
    ] = False


@dataclass(frozen=True)
class ChatSaving:
    """Which saved chat to continue, and whether to save this one."""

    resume_last: Annotated[
        bool, typer.Option("-c", "--continue", help="Continue the last saved chat.", rich_help_panel=SAVED)
    ] = False
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Continue a saved chat, by name or number.",
            autocompletion=complete.chats,
            rich_help_panel=SAVED,
        ),
    ] = None
    no_log: Annotated[bool, typer.Option("--no-log", help="Do not save this chat.", rich_help_panel=SAVED)] = False


@dataclass(frozen=True)
class ChatOutput:
    """How the answer is displayed."""

    no_preview: Annotated[
        bool, typer.Option("--no-preview", help="No small pictures in the interactive chat.", rich_help_panel=OUTPUT)
    ] = False
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print only the complete answer.", rich_help_panel=OUTPUT)
    ] = False
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object: answer, token counts, timings.", rich_help_panel=OUTPUT),
    ] = False
    verbose: Verbose = False


@dataclass(frozen=True)
class ChatRequest:
    """``compute`` has its defaults from ``settings`` already; ``sampling`` holds flags alone."""

    asked: ChatInput
    saving: ChatSaving
    output: ChatOutput
    compute: ComputeOptions
    sampling: SamplingOptions
    settings: "Settings"

    def is_interactive(self, terminal: "Terminal") -> bool:
        """Return whether there is no question, but a user at the terminal."""
        asked, output = self.asked, self.output
        given = asked.words or asked.prompt or asked.messages or asked.raw or output.no_stream or output.as_json
        return terminal.stdin_is_tty and terminal.stdout_is_tty and not given

    def system(self, saved: "SavedChat | None") -> str | None:
        """Return the system message: of the command line, or of the config file for a conversation that begins here."""
        asked = self.asked
        if asked.system is None and saved is None and not (asked.messages or asked.raw):
            return self.settings.system
        return asked.system

    def sampling_for(self, engine: "Engine") -> Sampling:
        """Return how a model answers: its own defaults, overridden by the config file, overridden by flags."""
        return Sampling.from_defaults(engine.generation_config, **{**self.settings.sampling, **self.sampling})

    @property
    def saves(self) -> bool:
        return not self.saving.no_log and self.settings.log is not False

    @property
    def verbose(self) -> bool:
        return self.output.verbose or bool(self.settings.verbose)
