"""The request of `mllama chat`: its options in groups, and the settings behind them.

Imported when the program starts, so it imports nothing heavy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.grammar_options import GrammarOptions
from mllama_cli.cli.options import SamplingOptions, Verbose, input_option, output_option
from mllama_cli.core.sampling import Sampling
from mllama_cli.processing.limits import MAX_IMAGES

if TYPE_CHECKING:
    from mllama_cli.chat.storage.saved import SavedChat
    from mllama_cli.core.answerer import Answerer
    from mllama_cli.core.settings import Settings
    from mllama_cli.terminal.console import Terminal

saving_option = partial(typer.Option, rich_help_panel="Saved chats")


@dataclass(frozen=True)
class ChatInput:
    """The parts of the question (``build_question`` puts them together)."""

    words: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="The question. Piped text comes before it.")
    ] = None
    image: Annotated[
        list[str] | None,
        input_option(
            "-i",
            "--image",
            "-a",
            "--attachment",
            metavar="IMAGE",
            help="A picture, PDF or video: a path, a pattern ('photos/*.jpg'), an http(s) or data: URL, or - for stdin "
            "(repeatable). After a #: pages (a.pdf#2-4), times (a.mp4#0:10-0:20), a crop (a.jpg#x,y,width,height).",
        ),
    ] = None
    pages: Annotated[
        str | None, input_option(metavar="PAGES", help="Pages of PDFs, such as 2-4 or 1,3,5 (default: all).")
    ] = None
    frames: Annotated[
        int | None,
        input_option(metavar="N", min=1, max=MAX_IMAGES, help="Frames of each video, spread evenly (default: 8)."),
    ] = None
    prompt: Annotated[
        str | None, input_option("-p", "--prompt", metavar="TEXT", help="The question, as an option.")
    ] = None
    system: Annotated[
        str | None,
        input_option("-s", "--system", "--system-prompt", metavar="TEXT", help="How the model should behave."),
    ] = None
    messages: Annotated[
        str | None,
        input_option(metavar="FILE", help="A conversation as JSON: a list of {role, content} (- for stdin)."),
    ] = None
    prefill: Annotated[
        str | None,
        input_option(metavar="TEXT", help="Begin the answer with this; the model goes on with it."),
    ] = None
    raw: Annotated[bool, input_option("--raw", help="Send the prompt verbatim, without the chat template.")] = False
    no_stdin: Annotated[bool, input_option("--no-stdin", help="Do not read stdin (for `while read` loops).")] = False


@dataclass(frozen=True)
class ChatSaving:
    """The saved chat to continue, and whether to save this one."""

    resume_last: Annotated[bool, saving_option("-c", "--continue", help="Continue the last saved chat.")] = False
    resume: Annotated[
        str | None,
        saving_option(metavar="NAME", help="Continue a saved chat by name or number.", autocompletion=complete.chats),
    ] = None
    no_log: Annotated[bool, saving_option("--no-log", help="Do not save this chat.")] = False


@dataclass(frozen=True)
class ChatOutput:
    """How the answer is displayed."""

    no_preview: Annotated[bool, output_option("--no-preview", help="Show no thumbnails in the interactive chat.")] = (
        False
    )
    no_stream: Annotated[bool, output_option("--no-stream", help="Print the answer only when it is complete.")] = False
    as_json: Annotated[bool, output_option("--json", help="Print one JSON object: answer, token counts, timings.")] = (
        False
    )
    verbose: Verbose = False


@dataclass(frozen=True)
class ChatRequest:
    """Everything that was asked. ``sampling`` holds flags only."""

    asked: ChatInput
    saving: ChatSaving
    output: ChatOutput
    sampling: SamplingOptions
    form: GrammarOptions
    settings: "Settings"

    def is_interactive(self, terminal: "Terminal") -> bool:
        """Return whether to chat: a user is at the terminal and no question was given."""
        asked, output = self.asked, self.output
        given = asked.words or asked.prompt or asked.messages or asked.raw or asked.prefill is not None
        given = given or output.no_stream or output.as_json
        return terminal.stdin_is_tty and terminal.stdout_is_tty and not given

    def system(self, saved: "SavedChat | None") -> str | None:
        """Return the command line's system message, or for a new conversation the config file's."""
        asked = self.asked
        if asked.system is None and saved is None and not (asked.messages or asked.raw):
            return self.settings.system
        return asked.system

    def sampling_for(self, engine: "Answerer", asked: Mapping[str, Any] = MappingProxyType({})) -> Sampling:
        """Return a model's own defaults, overridden by the config file, then by what was ``asked``, then by flags."""
        given = {**self.settings.sampling, **asked, **self.sampling}
        if self.form.grammar is not None:
            given["grammar"] = self.form.grammar
        return Sampling.from_defaults(engine.about.generation, **given)

    @property
    def saves(self) -> bool:
        return not self.saving.no_log and self.settings.log != "none"

    def saves_question(self, terminal: "Terminal", *, continued: bool) -> bool:
        """Return whether one question is kept: one that continues a saved chat, or one asked on a terminal."""
        return self.saves and (continued or (terminal.stdout_is_tty and self.settings.log != "chats"))

    @property
    def verbose(self) -> bool:
        return self.output.verbose or bool(self.settings.verbose)
