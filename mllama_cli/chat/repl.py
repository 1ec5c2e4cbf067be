"""The interactive chat: reads a line, does what it says, shows the answer; until the person leaves."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mllama_cli.chat.autosave import Saving
from mllama_cli.chat.commands.registry import COMMANDS, find_command
from mllama_cli.chat.dialogue import Attachment, LiveChat
from mllama_cli.chat.dropped_paths import find_images
from mllama_cli.core.conversation import Message
from mllama_cli.core.errors import ContextLengthError, MemoryShortageError, MllamaError
from mllama_cli.core.events import Event, GenerationStats, Notice, Token
from mllama_cli.terminal.answer_view import StatusLine, stats_line
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.markdown.view import MarkdownView

if TYPE_CHECKING:
    from mllama_cli.core.sampling import Sampling
    from mllama_cli.engine.engine import Engine

NEARLY_FULL = 0.9
"""Share of the context from which on the person is told."""


class Input(Protocol):
    """Where the person's lines come from (``terminal.prompt.ChatPrompt``, or a list in tests)."""

    def ask(self, chips: list[str], default: str = "") -> str:
        """The next message; EOFError when the person leaves."""
        ...

    def choose(self, question: str, choices: str) -> str:
        """One of the letters ``choices``; the last one when the person only presses Enter or Ctrl-C."""
        ...


@dataclass
class Look:
    """How answers appear. The person can change it while chatting."""

    verbose: bool = False
    preview: bool = True
    theme: str = "dark"


class Repl:
    """Ties a live chat to a terminal. Commands (``chat.commands``) act on its attributes."""

    def __init__(
        self,
        terminal: Terminal,
        chat: LiveChat,
        source: Input,
        saving: Saving,
        *,
        load_engine: "Callable[[str], Engine]",
        default_sampling: "Callable[[Engine], Sampling]",
        look: Look | None = None,
    ) -> None:
        self.terminal = terminal
        self.chat = chat
        self.source = source
        self.saving = saving
        self.load_engine = load_engine
        self.default_sampling = default_sampling
        self.look = look or Look()
        self.draft = ""
        self.leaving = False
        self._told_full = False

    def run(self) -> None:
        """Until /bye (which sets ``leaving``) or Ctrl-D."""
        while not self.leaving:
            try:
                text = self.source.ask([a.chip for a in self.chat.attachments], self._take_draft())
            except EOFError:
                return
            try:
                self.handle(text)
            except MllamaError as error:
                self.terminal.error(error.message, error.hint)
            except (RuntimeError, MemoryError) as error:
                from mllama_cli.engine.device import is_out_of_memory, memory_shortage

                if not is_out_of_memory(error):
                    raise
                shortage = memory_shortage()
                self.terminal.error(shortage.message, shortage.hint)
            except KeyboardInterrupt:
                self.terminal.note("Stopped.")

    def handle(self, text: str) -> None:
        """One line of the person's: a command, or a message with pictures in it. Raises MllamaError."""
        command = find_command(text)
        if command is not None:
            command.action.run(self, command.argument)
            return
        dropped = find_images(text)
        for path in dropped.paths:
            self.attach(path)
        if not dropped.text.strip() and not self.chat.attached_text:
            # A picture alone waits for its question; sending at once is what people complain about.
            return
        self.send(self.chat.compose(dropped.text), typed=dropped.text)

    def attach(self, source: str) -> Attachment:
        """Attach a picture by path or URL, and show it small."""
        from mllama_cli.processing.sources import read_image

        with StatusLine(self.terminal) as status:
            if "://" in source:
                status.show(f"Fetching {source}")
            attachment = self.chat.attach(read_image(source))
        self.show_picture(attachment)
        return attachment

    def show_picture(self, attachment: Attachment, *, large: bool = False) -> None:
        if not (self.look.preview or large):
            return
        from mllama_cli.processing.images import open_image
        from mllama_cli.terminal.preview import show_preview

        size = {"max_columns": 80, "max_rows": 40} if large else {"max_columns": 32, "max_rows": 10}
        show_preview(self.terminal, open_image(attachment.part), **size)

    def send(self, message: Message, *, typed: str = "") -> None:
        """Ask, and show the answer as it comes; the person chooses what goes if the context is too small."""
        while True:
            before = self.chat.conversation
            try:
                self.show(self.chat.ask(message))
                return
            except MemoryShortageError:
                if self.chat.conversation is before:
                    self.draft = typed
                raise
            except ContextLengthError as error:
                self.terminal.error(error.message, "")
                if not self.chat.conversation.messages:
                    self.draft = typed
                    raise ContextLengthError("This one message alone is too long", "Shorten it.") from error
                choice = self.source.choose(
                    "Forget the [o]ldest question and answer, start a [n]ew conversation, or [k]eep everything?", "onk"
                )
                if choice == "k":
                    self.draft = typed
                    return
                if choice == "n":
                    self.saving.start_anew()
                    self.chat.conversation = type(self.chat.conversation)()
                else:
                    self.saving.branch()
                    self.chat.drop_oldest()

    def show(self, events: Iterator[Event]) -> None:
        """Draw an answer. Ctrl-C stops it; what was said stays, on the screen and in the conversation."""
        view = MarkdownView(self.terminal, theme=self.look.theme)
        stats: GenerationStats | None = None
        spoken = False
        with closing(events), StatusLine(self.terminal) as status:  # type: ignore[type-var]
            try:
                for event in events:
                    match event:
                        case Token(text=text):
                            status.clear()
                            view.write(text)
                            spoken = True
                        case GenerationStats():
                            stats = event
                        case Notice():
                            status.event(event)
                        case _:
                            status.event(event)
                status.clear()
                view.finish()
            except KeyboardInterrupt:
                status.clear()
                view.interrupt()
                self.terminal.note("Stopped. What was said so far stays in the conversation.")
            except MllamaError:
                if spoken:
                    status.clear()
                    view.interrupt()
                    self.saving.save(self.chat)
                raise
        self.saving.save(self.chat)
        if stats is not None:
            self._after(stats)
        self._gap()

    def _gap(self) -> None:
        """An empty line between an answer and the next question, for the eye."""
        if self.terminal.stderr_is_tty:
            self.terminal.err.print()

    def replay(self) -> None:
        """Show the last answer again, as a reminder."""
        view = MarkdownView(self.terminal, theme=self.look.theme)
        view.write(self.chat.last_answer)
        view.finish()
        self._gap()

    def _after(self, stats: GenerationStats) -> None:
        if stats.finish_reason == "length":
            self.terminal.note(f"The answer was cut at {stats.completion_tokens} tokens (/set parameter max_tokens N).")
        if self.look.verbose:
            self.terminal.note(stats_line(stats))
        used, size = self.chat.context_used, self.chat.context
        if used < NEARLY_FULL * size:
            self._told_full = False
        elif not self._told_full:
            self._told_full = True
            self.terminal.note(
                f"The context is nearly full: {used} of {size} tokens. /clear starts anew, /undo takes a question back."
            )

    def _take_draft(self) -> str:
        draft, self.draft = self.draft, ""
        return draft


def command_names() -> list[str]:
    """All names, with the slash."""
    return [f"/{name}" for action in COMMANDS for name in action.names]
